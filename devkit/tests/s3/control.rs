//! The controls over HTTP.

use serde_json::{Value, json};

use crate::client::{BUCKET, client, client_as, get, plain, put, refusal, server};

#[tokio::test]
async fn faults_are_added_shown_and_removed_over_http() {
    let server = server().await;
    let client = client(&server);
    let rule = json!({"operation": "PutObject", "key_prefix": "p/", "times": 1, "action": {"kind": "slow_down"}});
    let (status, body) = plain(&server, "POST", "/_lockstep/faults", "", &rule.to_string()).await;
    assert_eq!((status, body.as_str()), (200, r#"{"ids":[1]}"#));
    let write = client.put_object().bucket(BUCKET).key("p/k").body(b"x".to_vec().into()).send().await;
    assert_eq!(refusal(write), (503, "SlowDown".to_owned()));
    put(&client, "p/k", b"x").await;

    let (_, shown) = plain(&server, "GET", "/_lockstep/faults", "", "").await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown[0]["hits"], &shown[0]["matched"]), (&json!(1), &json!(2)));
    assert_eq!(plain(&server, "DELETE", "/_lockstep/faults/1", "", "").await.0, 200);
    assert_eq!(plain(&server, "DELETE", "/_lockstep/faults/1", "", "").await.0, 404);

    let two = json!([{"action": {"kind": "delay", "ms": 1}}, {"action": {"kind": "reset_after_write"}}]);
    let (_, body) = plain(&server, "POST", "/_lockstep/faults", "", &two.to_string()).await;
    assert_eq!(body, r#"{"ids":[2,3]}"#);
    plain(&server, "DELETE", "/_lockstep/faults", "", "").await;
    assert!(server.faults().rules().is_empty());
}

#[tokio::test]
async fn rule_with_a_typo_is_refused_by_name() {
    let server = server().await;
    let rule = json!({"oepration": "PutObject", "action": {"kind": "slow_down"}});
    let (status, body) = plain(&server, "POST", "/_lockstep/faults", "", &rule.to_string()).await;
    assert_eq!(status, 400);
    assert!(body.contains("oepration"), "{body}");
    assert!(server.faults().rules().is_empty());
}

#[tokio::test]
async fn the_log_is_read_and_cleared_over_http_and_control_is_not_in_it() {
    let server = server().await;
    let client = client(&server);
    put(&client, "a", b"x").await;
    put(&client, "b", b"x").await;
    let read = async |path: &str| -> Vec<Value> {
        let (status, body) = plain(&server, "GET", path, "", "").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    };
    let all = read("/_lockstep/requests").await;
    assert_eq!(all.len(), 2);
    assert_eq!(
        (&all[0]["operation"], &all[0]["key"], &all[0]["status"]),
        (&json!("PutObject"), &json!("a"), &json!(200))
    );
    let later = read(&format!("/_lockstep/requests?since={}", all[0]["seq"])).await;
    assert_eq!(later.len(), 1);
    plain(&server, "DELETE", "/_lockstep/requests", "", "").await;
    assert!(read("/_lockstep/requests").await.is_empty());
}

#[tokio::test]
async fn denials_are_set_over_http() {
    let server = server().await;
    let client = client(&server);
    let rule = json!({"operation": "PutObject"});
    assert_eq!(plain(&server, "POST", "/_lockstep/denials", "", &rule.to_string()).await.0, 200);
    let write = client.put_object().bucket(BUCKET).key("k").body(b"x".to_vec().into()).send().await;
    assert_eq!(refusal(write), (403, "AccessDenied".to_owned()));
    plain(&server, "DELETE", "/_lockstep/denials", "", "").await;
    put(&client, "k", b"x").await;
}

#[tokio::test]
async fn browsers_are_kept_out() {
    let server = server().await;
    let (status, _) = plain(&server, "GET", "/_lockstep/requests", "origin: http://evil.example\r\n", "").await;
    assert_eq!(status, 403);
    assert_eq!(plain(&server, "GET", "/_lockstep/nonsense", "", "").await.0, 404);
}

#[tokio::test]
async fn totals_add_up_by_access_key_and_operation() {
    let server = server().await;
    let client = client(&server);
    let other = client_as(&server, "other", "other-secret");
    for size in [1000, 234] {
        put(&client, "k", &vec![1; size]).await;
    }
    put(&other, "o", b"12345").await;
    get(&other, "o").await;
    assert!(other.get_object().bucket(BUCKET).key("nothing").send().await.is_err());
    let (status, body) = plain(&server, "GET", "/_lockstep/totals", "", "").await;
    assert_eq!(status, 200);
    let totals: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(
        totals[0],
        json!({"access_key": "lockstep", "operation": "PutObject", "requests": 2, "failed": 0, "bytes_in": 1234, "bytes_out": 0})
    );
    assert_eq!((&totals[1]["operation"], &totals[1]["requests"]), (&json!("GetObject"), &json!(2)));
    assert_eq!(totals[1]["failed"], json!(1));
    assert_eq!((&totals[2]["operation"], &totals[2]["bytes_in"]), (&json!("PutObject"), &json!(5)));
    server.clear_requests();
    assert!(server.log().totals().is_empty());
}
