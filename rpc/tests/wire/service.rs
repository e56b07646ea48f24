//! What every server has beside its services.

use lockstep_rpc::{GrpcServer, ServerOptions, TracedChannel, connect_lazy};
use tonic::Code;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Answered;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::probe::{Running, start, within};

fn channel(server: &Running) -> TracedChannel {
    connect_lazy(&server.address, &Default::default()).unwrap()
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn health_says_serving_for_the_whole_and_for_each_service() {
    let server = start(ServerOptions::default()).await;
    let mut health = HealthClient::new(channel(&server));
    for service in ["", "lockstep.test.Probe"] {
        let answer = within(health.check(about(service))).await.unwrap().into_inner();
        assert_eq!(answer.status(), Answered::Serving, "{service}");
    }
    assert_eq!(within(health.check(about("none"))).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn watchers_hear_of_a_shutdown_and_do_not_delay_it() {
    let options = ServerOptions { shutdown_grace: std::time::Duration::from_secs(3600), ..Default::default() };
    let server = start(options).await;
    let mut watched = within(HealthClient::new(channel(&server)).watch(about(""))).await.unwrap().into_inner();
    assert_eq!(within(watched.message()).await.unwrap().unwrap().status(), Answered::Serving);
    drop(server.stop);
    assert_eq!(within(watched.message()).await.unwrap().unwrap().status(), Answered::NotServing);
    assert_eq!(within(watched.message()).await.unwrap(), None);
    within(server.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_process_can_say_itself_that_it_is_not_serving() {
    let listener = lockstep_rpc::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = GrpcServer::new(ServerOptions::default());
    server.health().set_service_status("", ServingStatus::NotServing).await;
    tokio::spawn(server.serve(listener, std::future::pending()));
    let mut health = HealthClient::new(connect_lazy(&address, &Default::default()).unwrap());
    let answer = within(health.check(about(""))).await.unwrap().into_inner();
    assert_eq!(answer.status(), Answered::NotServing);
}

#[tokio::test]
async fn reflection_lists_the_services_it_was_given_and_health() {
    let server = start(ServerOptions::default()).await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel(&server));
    let requests = futures::stream::iter([request]);
    let mut answers = within(client.server_reflection_info(requests)).await.unwrap().into_inner();
    let answer = within(answers.message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    for expected in ["grpc.reflection.v1alpha.ServerReflection", "grpc.health.v1.Health"] {
        assert!(list.service.iter().any(|service| service.name == expected), "{expected} in {list:?}");
    }
}

#[test]
fn descriptors_that_are_none_are_refused() {
    let error = GrpcServer::new(ServerOptions::default()).with_reflection(b"nonsense").unwrap_err();
    assert!(error.to_string().starts_with("invalid descriptors for gRPC reflection: "), "{error}");
}
