//! What the engine is told: checked as orders are, kept, taken back by an install, and heard by whoever waits.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use lockstep_agent::{Agent, Role, Word};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_proto::v1;
use lockstep_protocol::{id::LocalCheckpointId, round::Source, spec::PullSelector, start::StartPull};

use crate::harness::{Files, Host, PIPELINE, directory, files, noise, refusal, round_id, s3, until, write_checkpoint};

fn word(round_no: u64, checkpoint: Option<(LocalCheckpointId, u64)>, role: Role) -> Word {
    Word {
        round: Some(round_id(round_no).parse().unwrap()),
        checkpoint: checkpoint.map(|(id, step)| (id, lockstep_protocol::id::Step::new(step).unwrap())),
        role,
    }
}

fn order(header: v1::OrderHeader, checkpoint: LocalCheckpointId, step: u64, role: v1::Role) -> v1::ReadyOrder {
    let header = Some(header);
    v1::ReadyOrder { header, local_checkpoint: checkpoint.to_string(), step, fresh: false, role: role.into() }
}

impl Host {
    /// Round 1 has installed its only checkpoint.
    async fn installed(self) -> (Self, LocalCheckpointId) {
        let checkpoint = self.checkpoint(4, &files(&[("a", noise("a", 10))]));
        self.install(self.install_order(1, &checkpoint.to_string(), 4)).await.unwrap();
        (self, checkpoint)
    }

    async fn tell(&self, order: v1::ReadyOrder) {
        let answer = self.client.clone().ready(order).await.unwrap().into_inner();
        assert_eq!(answer.incarnation, self.agent.incarnation().to_string());
    }

    async fn described(&self) -> Option<v1::ReadyWord> {
        self.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().ready
    }

    async fn word(&self) -> Option<Word> {
        *self.agent.words().await.borrow()
    }
}

#[tokio::test]
async fn the_engine_may_start_only_after_the_word_and_in_its_role() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    assert_eq!(
        (host.word().await, host.described().await),
        (None, None),
        "installed on this host is not on every host"
    );
    host.tell(order(host.header(1), checkpoint, 4, v1::Role::Standby)).await;
    assert_eq!(host.agent.ready().await.unwrap(), word(1, Some((checkpoint, 4)), Role::Standby));
    host.tell(order(v1::OrderHeader { term: 2, ..host.header(1) }, checkpoint, 4, v1::Role::Active)).await;
    assert_eq!(host.agent.ready().await.unwrap(), word(1, Some((checkpoint, 4)), Role::Active));
    let described = host.described().await.unwrap();
    assert_eq!((described.round.clone(), described.step, described.role()), (round_id(1), 4, v1::Role::Active));
}

#[tokio::test]
async fn a_word_for_another_host_process_term_or_round_is_refused_by_its_own_reason() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    host.install(v1::InstallOrder {
        header: Some(v1::OrderHeader { term: 3, ..host.header(2) }),
        ..host.install_order(2, &checkpoint.to_string(), 4)
    })
    .await
    .unwrap();
    let good = v1::OrderHeader { term: 3, ..host.header(2) };
    let refused = async |header: v1::OrderHeader| {
        refusal(host.client.clone().ready(order(header, checkpoint, 4, v1::Role::Active)).await)
    };
    for (header, reason) in [
        (
            v1::OrderHeader { host_info: Some(v1::HostInfo { host_idx: 2, n_hosts: 3 }), ..good.clone() },
            "HOST_INFO_MISMATCH",
        ),
        (v1::OrderHeader { host_info: None, ..good.clone() }, "HOST_INFO_MISMATCH"),
        (
            v1::OrderHeader { host_info: Some(v1::HostInfo { host_idx: 3, n_hosts: 3 }), ..good.clone() },
            "HOST_INFO_INVALID",
        ),
        (v1::OrderHeader { pipeline_id: round_id(9), ..good.clone() }, "PIPELINE_MISMATCH"),
        (v1::OrderHeader { incarnation: round_id(9), ..good.clone() }, "INCARNATION_MISMATCH"),
        (v1::OrderHeader { generation: 0, ..good.clone() }, "STALE_GENERATION"),
        (v1::OrderHeader { term: 2, ..good.clone() }, "STALE_TERM"),
        (v1::OrderHeader { term: 9, ..host.header(1) }, "STALE_ROUND"),
    ] {
        assert_eq!(refused(header).await.reason, reason);
    }
    let problem = refused(v1::OrderHeader { term: 2, ..good.clone() }).await;
    assert_eq!((problem.metadata["ordered"].as_str(), problem.metadata["own"].as_str()), ("2", "3"));
    let unsaid = order(good.clone(), checkpoint, 4, v1::Role::Unspecified);
    let problem = refusal(host.client.clone().ready(unsaid).await);
    assert_eq!((problem.reason.as_str(), problem.metadata["field"].as_str()), ("SPEC_INVALID", "role"));
    assert_eq!(host.word().await, None);

    host.tell(order(good, checkpoint, 4, v1::Role::Active)).await;
}

#[tokio::test]
async fn a_push_that_was_ordered_since_makes_no_word_stale() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    host.push(host.push_order(2, checkpoint, 4)).await.unwrap();
    host.tell(order(host.header(1), checkpoint, 4, v1::Role::Active)).await;
    assert_eq!(host.word().await, Some(word(1, Some((checkpoint, 4)), Role::Active)));
}

#[tokio::test]
async fn a_host_without_the_checkpoint_is_not_ready() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    fs::remove_dir_all(host.folder(checkpoint)).unwrap();
    let problem = refusal(host.client.clone().ready(order(host.header(1), checkpoint, 4, v1::Role::Active)).await);
    assert_eq!(problem.reason, "CHECKPOINT_NOT_FOUND");
    assert_eq!(host.word().await, None);
}

#[tokio::test]
async fn an_install_takes_the_word_back_and_the_same_word_again_does_not_look_at_the_disk() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    let first = order(host.header(1), checkpoint, 4, v1::Role::Active);
    host.tell(first.clone()).await;
    // The engine runs and has dropped what it started from; the answer was lost.
    let newer = host.checkpoint(8, &Files::new());
    fs::remove_dir_all(host.folder(checkpoint)).unwrap();
    host.tell(first.clone()).await;

    host.install(host.install_order(2, &newer.to_string(), 8)).await.unwrap();
    assert_eq!((host.word().await, host.described().await), (None, None));
    assert_eq!(refusal(host.client.clone().ready(first).await).reason, "STALE_ROUND");
}

#[tokio::test]
async fn a_restarted_agent_says_the_same_as_long_as_the_disk_is_as_it_was_told() {
    let s3 = s3().await;
    let (host, checkpoint) = Host::start(&s3).await.installed().await;
    host.tell(order(host.header(1), checkpoint, 4, v1::Role::Active)).await;
    let host = host.restart(&s3).await;
    assert_eq!(host.agent.ready().await.unwrap(), word(1, Some((checkpoint, 4)), Role::Active));
    // Orders from before are as old as they were.
    let stale = v1::OrderHeader { term: 0, ..host.header(1) };
    assert_eq!(
        refusal(host.client.clone().ready(order(stale, checkpoint, 4, v1::Role::Standby)).await).reason,
        "STALE_TERM"
    );

    // The engine has gone on: whether the other hosts have that step is not known here.
    host.checkpoint(8, &Files::new());
    let host = host.restart(&s3).await;
    assert_eq!((host.word().await, host.described().await), (None, None));
    host.tell(order(v1::OrderHeader { term: 2, ..host.header(1) }, checkpoint, 4, v1::Role::Active)).await;
    assert_eq!(host.word().await, None, "what is told again after a lost answer is no new word");
}

struct Told {
    file: PathBuf,
    hooked: PathBuf,
    words: Arc<Mutex<Vec<Word>>>,
}

impl Told {
    fn below(dir: &Path) -> Self {
        Self { file: dir.join("ready"), hooked: dir.join("hooked"), words: Arc::default() }
    }

    fn agent(&self, root: &Path, status: u8) -> lockstep_agent::AgentHandle {
        let words = Arc::clone(&self.words);
        let hook = format!(
            "echo \"$LOCKSTEP_READY_ROLE $LOCKSTEP_READY_STEP $LOCKSTEP_READY_FRESH\" >> '{}'; exit {status}",
            self.hooked.display()
        );
        Agent::builder(PIPELINE.parse().unwrap(), Agent::slot(1, 3).unwrap(), directory(root))
            .allow("s3://acme/ckpt/orders?endpoint=http://127.0.0.1:9&region=us-east-1".parse().unwrap())
            .state_dir(root.join("state"))
            .ready_file(&self.file)
            .ready_hook(hook)
            .on_ready(move |word| words.lock().unwrap().push(word))
            .start()
            .unwrap()
    }

    fn hooked(&self) -> String {
        fs::read_to_string(&self.hooked).unwrap_or_default()
    }

    fn heard(&self) -> usize {
        self.words.lock().unwrap().len()
    }
}

/// An agent without any host around it, and the order that it is told with.
async fn start(told: &Told, root: &Path, status: u8) -> (lockstep_agent::AgentHandle, crate::harness::Client) {
    let (told, root) = (
        Told { file: told.file.clone(), hooked: told.hooked.clone(), words: Arc::clone(&told.words) },
        root.to_owned(),
    );
    let agent = tokio::task::spawn_blocking(move || told.agent(&root, status)).await.unwrap();
    let client = crate::harness::client(&agent);
    (agent, client)
}

fn header_of(agent: &lockstep_agent::AgentHandle, term: u64) -> v1::OrderHeader {
    v1::OrderHeader {
        pipeline_id: PIPELINE.to_owned(),
        pipeline_name: "orders".to_owned(),
        host_info: Some(v1::HostInfo { host_idx: 1, n_hosts: 3 }),
        incarnation: agent.incarnation().to_string(),
        generation: 1,
        round_no: 1,
        term,
        round: round_id(1),
        attempt: 1,
        own_location: Some(v1::Location {
            bucket: "acme".to_owned(),
            prefix: "ckpt/orders".to_owned(),
            endpoint: "http://127.0.0.1:9".to_owned(),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn file_hook_and_callback_tell_each_word_once_also_after_a_restart() {
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let told = Told::below(outside.path());
    fs::write(&told.file, "of an earlier pod").unwrap();
    let checkpoint = write_checkpoint(root.path(), 4, &Files::new());
    let (agent, client) = start(&told, root.path(), 0).await;
    assert!(!told.file.exists(), "what an earlier pod left was not removed");
    client.clone().ready(order(header_of(&agent, 1), checkpoint, 4, v1::Role::Standby)).await.unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&fs::read(&told.file).unwrap()).unwrap();
    assert_eq!(
        shown,
        serde_json::json!({"checkpoint": checkpoint, "step": 4, "fresh": false, "role": "standby", "round": round_id(1)})
    );
    until("the hook and the callback", async || told.hooked() == "standby 4 false\n" && told.heard() == 1).await;
    client.clone().ready(order(header_of(&agent, 2), checkpoint, 4, v1::Role::Active)).await.unwrap();
    until("both for the next word", async || told.hooked().ends_with("active 4 false\n") && told.heard() == 2).await;
    // The hook's end is stored after it.
    let stored = root.path().join("state/ready.json");
    until("the hook's end", async || fs::read_to_string(&stored).unwrap().contains("\"hooked\": true")).await;

    tokio::task::spawn_blocking(|| agent.shutdown()).await.unwrap();
    fs::remove_file(&told.file).unwrap();
    let (agent, client) = start(&told, root.path(), 0).await;
    assert!(fs::read_to_string(&told.file).unwrap().contains("\"active\""), "said again at the start");
    until("the callback of the new process", async || told.heard() == 3).await;
    client.clone().ready(order(header_of(&agent, 3), checkpoint, 4, v1::Role::Active)).await.unwrap();
    client
        .clone()
        .install(v1::InstallOrder {
            header: Some(v1::OrderHeader { round_no: 2, round: round_id(2), ..header_of(&agent, 1) }),
            local_checkpoint: checkpoint.to_string(),
            step: 4,
            fresh: false,
        })
        .await
        .unwrap();
    assert!(!told.file.exists(), "an install leaves no word");
    let mut fresh = order(
        v1::OrderHeader { round_no: 2, round: round_id(2), ..header_of(&agent, 2) },
        checkpoint,
        0,
        v1::Role::Active,
    );
    (fresh.fresh, fresh.local_checkpoint) = (true, String::new());
    client.clone().ready(fresh).await.unwrap();
    until("the word of the next round", async || told.hooked().ends_with("active  true\n")).await;
    assert_eq!(told.hooked(), "standby 4 false\nactive 4 false\nactive  true\n");
}

/// The source was retired and nothing else found (G5): the coordinator's word may overtake its `Cancel`, whose term is lower.
#[tokio::test]
async fn a_fresh_start_ends_the_pull_of_its_round_whether_it_runs_or_is_staged() {
    let s3 = s3().await;
    let lost = Host::start(&s3).await;
    let checkpoint = lost.checkpoint(4, &files(&[("a", noise("a", 10))]));
    let done = lost.push(lost.push_order(1, checkpoint, 4)).await.unwrap();
    for runs in [false, true] {
        let host = Host::start(&s3).await;
        let pull = host.pull_order(2, &done, 1);
        if runs {
            let hang = s3.faults().add(FaultRule::new(FaultAction::Hang).operation("GetObject").key_contains("data-"));
            host.client.clone().pull(pull).await.unwrap();
            until("a download to hang", async || s3.faults().hits(hang) > 0).await;
        } else {
            host.pull(pull).await.unwrap();
        }
        assert_eq!(host.stagings().len(), 1);
        let header = v1::OrderHeader { term: 2, ..host.header(2) };
        let fresh = order(header, checkpoint, 0, v1::Role::Active);
        host.tell(v1::ReadyOrder { fresh: true, local_checkpoint: String::new(), ..fresh }).await;
        assert_eq!(host.stagings(), Vec::<PathBuf>::new());
        let described = host.client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.running, None);
        let late = host.client.clone().cancel(v1::CancelOrder { header: Some(host.header(2)) }).await;
        assert_eq!(refusal(late).reason, "STALE_TERM");
    }
}

#[tokio::test]
async fn a_hook_that_fails_is_described_and_the_word_holds() {
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let told = Told::below(outside.path());
    let checkpoint = write_checkpoint(root.path(), 4, &Files::new());
    let (agent, client) = start(&told, root.path(), 3).await;
    client.clone().ready(order(header_of(&agent, 1), checkpoint, 4, v1::Role::Active)).await.unwrap();
    let described = async || client.clone().describe(v1::DescribeRequest {}).await.unwrap().into_inner().ready.unwrap();
    until("the failure", async || described().await.hook_problem.contains("exit status: 3")).await;
    assert!(told.file.exists());
    assert_eq!(agent.ready().await.unwrap(), word(1, Some((checkpoint, 4)), Role::Active));
}

#[tokio::test]
async fn a_start_up_pull_gives_the_word_and_the_one_before_it_holds_no_more() {
    const LATEST: StartPull = StartPull { from: PullSelector::Latest, fail_if_none: None };
    let s3 = s3().await;
    let host = Host::solo(&s3).await;
    assert_eq!(host.word().await, None);
    let fresh = host.agent.pull_at_start(LATEST).await.unwrap();
    assert_eq!(fresh.source, Source::Fresh);
    assert_eq!(host.agent.ready().await.unwrap(), Word { round: None, checkpoint: None, role: Role::Active });

    let checkpoint = host.checkpoint(4, &Files::new());
    let host = host.restart(&s3).await;
    assert_eq!(host.word().await, None, "the disk has gone on");
    host.agent.pull_at_start(LATEST).await.unwrap();
    let (id, step) = host.agent.ready().await.unwrap().checkpoint.unwrap();
    assert_eq!((id, step.get()), (checkpoint, 4));
}
