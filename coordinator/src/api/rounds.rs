//! Rounds: start, look, cancel.

use lockstep_proto::v1;
use lockstep_protocol::{
    id::{LocalCheckpointId, RoundId, Step},
    problem::{Problem, Reason},
    round::{CancelRequest, Phase, PullRequest, WantedCut, check_cancellable},
    spec::{PipelineSpec, PullSelector},
};

use super::{
    Api,
    request::{self, refuse, required},
};
use crate::{
    convert,
    store::{AdmitPull, AdmitPush, Caller, PipelineSelector, RoundFilter, RoundKind, Trigger},
};

/// Longest cause of a cancel, in bytes; it stands in rows and abort records.
const MAX_CAUSE: usize = 1024;

impl Api {
    pub(super) async fn do_start_push(
        &self,
        caller: Caller,
        message: v1::StartPushRequest,
    ) -> Result<v1::Round, Problem> {
        let pipeline: PipelineSelector = required("pipeline", &message.pipeline)?;
        let mut push = AdmitPush {
            pipeline,
            wanted: wanted_of(message.selector.as_ref())?,
            force: message.force,
            trigger: Trigger::Manual,
            found: None,
            request_id: request::request_id(&message.request_id)?,
            deadline: request::deadline(message.deadline.as_ref(), self.options.push_deadline)?,
            retry: self.options.retry,
        };
        if message.validate_only {
            return self.plan_push(&push).await;
        }
        push.found = self.found_cut(&push).await?;
        let admitted = self.store.admit_push(push, &caller).await?;
        Ok(convert::round::round(admitted.record()))
    }

    pub(super) async fn do_start_pull(
        &self,
        caller: Caller,
        message: v1::StartPullRequest,
    ) -> Result<v1::Round, Problem> {
        let row = self.pipeline(&message.pipeline).await?;
        let pull = AdmitPull {
            pipeline: row.id.into(),
            request: pull_request(&row.spec, &message)?,
            follows: None,
            request_id: request::request_id(&message.request_id)?,
            deadline: request::deadline(message.deadline.as_ref(), self.options.pull_deadline)?,
            retry: self.options.retry,
        };
        if message.validate_only {
            return self.plan_pull(&row, &pull).await;
        }
        let admitted = self.store.admit_pull(pull, &caller).await?;
        Ok(convert::round::round(admitted.record()))
    }

    pub(super) async fn do_get_round(&self, message: &v1::GetRoundRequest) -> Result<v1::Round, Problem> {
        let id: RoundId = required("round", &message.round)?;
        Ok(convert::round::round(&self.store.get_round(id).await?))
    }

    pub(super) async fn do_list_rounds(
        &self,
        message: v1::ListRoundsRequest,
    ) -> Result<v1::ListRoundsResponse, Problem> {
        let page = request::page(message.page_size, message.page_token)?;
        let mut filter = RoundFilter { active_only: message.active_only, ..RoundFilter::default() };
        if !message.pipeline.is_empty() {
            filter.pipeline = Some(self.pipeline(&message.pipeline).await?.id);
        }
        filter.kind = match v1::RoundKind::try_from(message.kind) {
            Ok(v1::RoundKind::Unspecified) => None,
            Ok(v1::RoundKind::Push) => Some(RoundKind::Push),
            Ok(v1::RoundKind::Pull) => Some(RoundKind::Pull),
            Err(_) => return Err(refuse("kind", message.kind, "is neither push nor pull")),
        };
        let listed = self.store.list_rounds(filter, page).await?;
        Ok(v1::ListRoundsResponse {
            rounds: listed.items.iter().map(convert::round::round).collect(),
            next_page_token: listed.next.unwrap_or_default(),
        })
    }

    pub(super) async fn do_cancel_round(
        &self,
        caller: Caller,
        message: v1::CancelRoundRequest,
    ) -> Result<v1::Round, Problem> {
        let id: RoundId = required("round", &message.round)?;
        let cause = cause_of(message.cause)?;
        let request = CancelRequest { by: caller.actor.clone(), cause };
        let asked = self.store.request_cancel(id, request.clone(), &caller).await?;
        if asked.round.phase.is_terminal() && asked.cancel_requested != Some(request) {
            // Over before this request. The same one again is a retry, and gets the answer that was lost.
            check_cancellable(&asked.round)?;
        }
        // The round's driver decides; in Committing whoever wins the decision key.
        let record = self.round_when(id, self.options.cancel_wait, |r| check_cancellable(&r.round).is_err()).await?;
        if record.round.phase != Phase::Cancelled {
            // It got past the cancel: say so instead of handing out a round that goes on as if it were stopped.
            check_cancellable(&record.round)?;
        }
        Ok(convert::round::round(&record))
    }
}

/// Why something is cancelled.
pub(super) fn cause_of(cause: String) -> Result<String, Problem> {
    if cause.len() > MAX_CAUSE || cause.chars().any(char::is_control) {
        let why = format!("is above {MAX_CAUSE} bytes or has control characters");
        return Err(refuse("cause", format!("of {} bytes", cause.len()), &why));
    }
    Ok(if cause.is_empty() { "no cause given".to_owned() } else { cause })
}

fn wanted_of(selector: Option<&v1::start_push_request::Selector>) -> Result<WantedCut, Problem> {
    use v1::start_push_request::Selector;
    match selector {
        None | Some(Selector::Latest(true)) => Ok(WantedCut::Newest),
        Some(Selector::Latest(false)) => {
            Err(refuse("latest", false, "selects nothing: leave it out or set it to true"))
        }
        Some(Selector::Step(step)) => Ok(WantedCut::Step(Step::new(*step)?)),
        Some(Selector::LocalCheckpoint(id)) => Ok(WantedCut::Local(id.parse::<LocalCheckpointId>()?)),
    }
}

/// What the caller said, completed from the spec's start policy.
fn pull_request(spec: &PipelineSpec, message: &v1::StartPullRequest) -> Result<PullRequest, Problem> {
    let Some(standby) = message.standby else {
        return Err(Problem::new(
            Reason::StandbyUnset,
            "the pull does not say whether it is a standby's: set standby to false for an engine that starts (local checkpoints first), to \
             true for one that follows its location",
        )
        .with("field", "standby"));
    };
    let selector = convert::pipeline::pull_selector_of(message.selector.as_ref())?.unwrap_or(spec.start.from);
    // Who names a checkpoint wants that one: without it there is no fresh start unless the caller says so (protocol.md, "Pull" 1).
    let explicit = selector != PullSelector::Latest;
    Ok(PullRequest {
        selector,
        standby,
        fail_if_none: message.fail_if_none.unwrap_or(spec.start.fail_if_none || explicit),
        allow_fingerprint: message.allow_fingerprint,
        discard_local: message.discard_local,
    })
}

#[cfg(test)]
mod tests {
    use lockstep_proto::v1::{StartPullRequest, start_pull_request::Selector};

    use super::*;

    fn spec(start: serde_json::Value) -> PipelineSpec {
        PipelineSpec::from_value(serde_json::json!({
            "name": "orders", "solo": true, "agents": "http://a:7402", "location": {"bucket": "acme-ckpt"}, "start": start,
        }))
        .unwrap()
    }

    #[test]
    fn a_pull_must_say_whether_it_is_a_standbys() {
        let refused = pull_request(&spec(serde_json::json!({})), &StartPullRequest::default()).unwrap_err();
        assert_eq!(refused.reason, Reason::StandbyUnset);
        assert_eq!(refused.metadata["field"], "standby");
    }

    #[test]
    fn only_latest_falls_back_to_a_fresh_start_by_itself() {
        let lenient = spec(serde_json::json!({}));
        let strict = spec(serde_json::json!({"fail_if_none": true}));
        let pinned = spec(serde_json::json!({"from": {"step": 7}}));
        let ask = |spec: &PipelineSpec, selector: Option<Selector>, fail_if_none: Option<bool>| {
            let message =
                StartPullRequest { selector, fail_if_none, standby: Some(false), ..StartPullRequest::default() };
            pull_request(spec, &message).unwrap().may_start_fresh()
        };
        let step = || Some(Selector::Step(7));
        assert!(ask(&lenient, None, None));
        assert!(ask(&lenient, Some(Selector::Latest(true)), None));
        assert!(!ask(&strict, None, None));
        assert!(ask(&strict, None, Some(false)));
        assert!(!ask(&lenient, step(), None));
        assert!(ask(&lenient, step(), Some(false)));
        assert!(!ask(&pinned, None, None));
        let standby = StartPullRequest { standby: Some(true), ..StartPullRequest::default() };
        assert!(!pull_request(&lenient, &standby).unwrap().may_start_fresh());
    }

    #[test]
    fn an_unset_selector_is_the_specs() {
        let pinned = spec(serde_json::json!({"from": {"step": 7}}));
        let message = StartPullRequest { standby: Some(false), ..StartPullRequest::default() };
        assert_eq!(pull_request(&pinned, &message).unwrap().selector, PullSelector::Step(Step::new(7).unwrap()));
        let message = StartPullRequest { selector: Some(Selector::Latest(true)), ..message };
        assert_eq!(pull_request(&pinned, &message).unwrap().selector, PullSelector::Latest);
    }

    #[test]
    fn what_a_push_wants_is_checked() {
        use lockstep_proto::v1::start_push_request::Selector;
        assert_eq!(wanted_of(None), Ok(WantedCut::Newest));
        assert_eq!(wanted_of(Some(&Selector::Latest(true))), Ok(WantedCut::Newest));
        for wrong in [
            Selector::Latest(false),
            Selector::Step(u64::MAX),
            Selector::LocalCheckpoint("7".to_owned()),
            Selector::LocalCheckpoint(String::new()),
        ] {
            assert_eq!(wanted_of(Some(&wrong)).unwrap_err().reason, Reason::SpecInvalid, "{wrong:?}");
        }
    }
}
