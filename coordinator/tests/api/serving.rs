//! What every server of ours has: reflection and health.

use tokio_stream::StreamExt as _;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::harness::Coordinator;

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_service_and_describes_it() {
    let coordinator = Coordinator::start().await;
    let mut client = ServerReflectionClient::new(coordinator.channel.clone());
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("lockstep.v1.Coordinator.StartPush".to_owned())),
    ]);
    let answers: Vec<_> =
        client.server_reflection_info(asked).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    match answers[0].message_response.as_ref().unwrap() {
        MessageResponse::ListServicesResponse(listed) => {
            let names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
            assert!(names.contains(&"lockstep.v1.Coordinator"), "{names:?}");
            assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
        }
        other => panic!("{other:?}"),
    }
    match answers[1].message_response.as_ref().unwrap() {
        MessageResponse::FileDescriptorResponse(files) => assert!(!files.file_descriptor_proto.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_serving_for_the_whole_and_for_the_service() {
    let coordinator = Coordinator::start().await;
    let mut client = HealthClient::new(coordinator.channel.clone());
    for service in ["", "lockstep.v1.Coordinator"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "lockstep.v1.Nothing".to_owned() };
    assert_eq!(client.check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
}
