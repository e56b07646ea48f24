//! Orders sent straight to an agent, as only a coordinator would.

use lockstep_client::{RpcProblem, v1};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::cluster::{Cluster, PIPELINE};

/// A client of one agent.
pub type AgentClient = v1::agent_client::AgentClient<Channel>;

/// Connects to an agent.
pub async fn agent(address: &str) -> AgentClient {
    AgentClient::connect(address.to_owned()).await.expect("the agent listens")
}

/// An order header that fits the agent of one host of the cluster, of a round that the coordinator knows nothing of.
pub async fn header(cluster: &Cluster, host_idx: u32, round_no: u64) -> v1::OrderHeader {
    let mut client = agent(&cluster.agents[host_idx as usize].address).await;
    let described = client.describe(v1::DescribeRequest {}).await.expect("the agent answers").into_inner();
    let pipeline = cluster.client.get_pipeline(PIPELINE).await.expect("the pipeline is there");
    v1::OrderHeader {
        pipeline_id: pipeline.id,
        pipeline_name: PIPELINE.to_owned(),
        host_info: described.host_info,
        incarnation: described.incarnation,
        generation: pipeline.generation,
        round_no,
        term: 1,
        round: Uuid::new_v4().to_string(),
        attempt: 1,
        own_location: Some(cluster.location(PIPELINE)),
    }
}

/// A push order of one local checkpoint.
pub fn push(header: v1::OrderHeader, local_checkpoint: &str, step: u64) -> v1::PushOrder {
    v1::PushOrder {
        header: Some(header),
        local_checkpoint: local_checkpoint.to_owned(),
        step,
        fingerprint: String::new(),
        base: None,
        base_parts: Vec::new(),
        deadline: None,
        time_left: None,
        transfer: None,
    }
}

/// The problem that a call was refused with.
pub fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, tonic::Status>) -> RpcProblem {
    RpcProblem::from_status(&answer.expect_err("the order is refused"))
}
