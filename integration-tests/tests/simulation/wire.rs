//! The network between replicas and agents: calls that are lost, late, repeated or slow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use lockstep_coordinator::{
    agents::{AgentPool, AgentPoolOptions},
    store::memory::Gate,
};
use lockstep_proto::v1::agent_server::AgentServer;
use lockstep_rpc::{Carrier, ClientTrace};
use tonic::{Status, body::Body, codegen::http};
use tower::{Service as _, service_fn};

use crate::{
    agent::Agent,
    weather::{Fate, Weather},
};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// A replica's pool of agents, by address.
pub(crate) fn pool(agents: &[Agent], gate: &Arc<dyn Gate>, weather: &Weather) -> AgentPool {
    let hosts: BTreeMap<String, Agent> = agents.iter().map(|agent| (agent.address(), agent.clone())).collect();
    let (gate, weather) = (Arc::clone(gate), weather.clone());
    AgentPool::over(AgentPoolOptions::default(), move |address, _| {
        let (agent, gate, weather) = (hosts.get(address).cloned(), Arc::clone(&gate), weather.clone());
        let way = service_fn(move |request| call(agent.clone(), Arc::clone(&gate), weather.clone(), request));
        Ok(Carrier::new(ClientTrace::new(way, address)))
    })
}

/// None: there is no such host.
async fn call(
    agent: Option<Agent>,
    gate: Arc<dyn Gate>,
    weather: Weather,
    request: Request,
) -> Result<Response, Status> {
    gate.pass().await;
    let patience = timeout_of(&request);
    let Some(agent) = agent else { return Err(Status::unavailable("connection refused")) };
    let answer = match tokio::time::timeout(patience, travel(agent, weather, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    };
    gate.pass().await;
    answer
}

async fn travel(agent: Agent, weather: Weather, request: Request) -> Result<Response, Status> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let again = move || {
        let body = Body::new(http_body_util::Full::new(body.clone()));
        let mut request = Request::new(body);
        *request.uri_mut() = head.uri.clone();
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        request
    };
    let lost = Err(Status::unavailable("the connection was lost"));
    tokio::time::sleep(weather.latency()).await;
    let answer = match weather.fate() {
        Fate::Well => arrive(agent, again()).await,
        Fate::LoseRequest => lost,
        Fate::LoseAnswer => {
            tokio::spawn(arrive(agent, again()));
            lost
        }
        Fate::Twice(after) => {
            tokio::spawn(later(after, agent.clone(), again()));
            arrive(agent, again()).await
        }
        Fate::Late(after) => {
            tokio::spawn(later(after, agent, again()));
            lost
        }
    };
    tokio::time::sleep(weather.latency()).await;
    answer
}

async fn later(after: Duration, agent: Agent, request: Request) {
    tokio::time::sleep(after).await;
    // Nobody waits for this answer any more.
    let _ = arrive(agent, request).await;
}

/// A host that goes down before it has answered never answers.
async fn arrive(agent: Agent, request: Request) -> Result<Response, Status> {
    let Some(life) = agent.life() else { return Err(Status::unavailable("connection refused")) };
    let answer = AgentServer::new(agent.clone()).call(request).await;
    let same = agent.life() == Some(life);
    answer.ok().filter(|_| same).ok_or_else(|| Status::unavailable("connection reset"))
}

/// As tonic writes it.
fn timeout_of(request: &Request) -> Duration {
    let text = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok()).unwrap_or("60S");
    let (number, unit) = text.split_at(text.len() - 1);
    let number = number.parse().unwrap();
    match unit {
        "H" => Duration::from_secs(3600 * number),
        "M" => Duration::from_secs(60 * number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        _ => Duration::from_nanos(number),
    }
}
