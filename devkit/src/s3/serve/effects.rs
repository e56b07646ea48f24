//! What the fault rules that hit a request do to it.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response, StatusCode};
use s3s::{S3Error, S3ErrorCode};

use super::Closing;
use crate::s3::body::Shape;
use crate::s3::faults::{FaultAction, Hit};
use crate::s3::service::OtherRange;

/// What the faults do before the operation: wait, or answer in its place.
pub(super) async fn before(hits: &[Hit], closing: &Closing) -> Option<S3Error> {
    for hit in hits {
        let (status, code) = match &hit.action {
            FaultAction::SlowDown => (503, "SlowDown"),
            FaultAction::InternalError => (500, "InternalError"),
            FaultAction::AccessDenied => (403, "AccessDenied"),
            FaultAction::Error { status, code } => (*status, code.as_str()),
            FaultAction::ResetBeforeWrite => closing.reset_now().await,
            FaultAction::Delay { ms } => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                continue;
            }
            FaultAction::Hang => {
                hit.removed.cancelled().await;
                continue;
            }
            _ => continue,
        };
        return Some(fault_error(status, code));
    }
    None
}

/// What the faults do once the operation is done.
pub(super) async fn after(hits: &[Hit], closing: &Closing) -> Option<S3Error> {
    for hit in hits {
        match &hit.action {
            FaultAction::ErrorAfterWrite { status, code } => return Some(fault_error(*status, code)),
            FaultAction::ResetAfterWrite => closing.reset_now().await,
            FaultAction::HangAfterWrite => hit.removed.cancelled().await,
            _ => {}
        }
    }
    None
}

pub(super) fn shape_in(hits: &[Hit]) -> Shape {
    let mut shape = Shape::default();
    for hit in hits {
        match hit.action {
            FaultAction::Throttle { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
            FaultAction::ResetDuringBody { after_bytes } => shape.cut_after = Some(after_bytes),
            FaultAction::Stop { after_bytes } => shape.stop = Some((after_bytes, hit.removed.clone())),
            _ => {}
        }
    }
    shape
}

pub(super) fn shape_out(hits: &[Hit], closing: &Closing) -> Shape {
    let mut shape = Shape::default();
    for hit in hits {
        match hit.action {
            FaultAction::Throttle { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
            FaultAction::Truncate { after_bytes } => shape.cut_after = Some(after_bytes),
            FaultAction::Corrupt { at } => shape.corrupt_at = Some(at),
            FaultAction::Stop { after_bytes } => shape.stop = Some((after_bytes, hit.removed.clone())),
            FaultAction::WrongLength { .. } => shape.hides_length = true,
            FaultAction::ResetAfterAnswer => shape.over = Some(closing.after_answer.clone()),
            _ => {}
        }
    }
    shape
}

pub(super) fn write_delay(hits: &[Hit]) -> Option<Duration> {
    let delays = hits.iter().filter_map(|hit| match hit.action {
        FaultAction::DelayWrite { ms } => Some(Duration::from_millis(ms)),
        _ => None,
    });
    delays.reduce(|sum, delay| sum + delay)
}

fn fault_error(status: u16, code: &str) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, "a fault rule says so");
    error.set_status_code(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    error
}

pub(super) fn other_range(hits: &[Hit]) -> Option<OtherRange> {
    hits.iter().find_map(|hit| match hit.action {
        FaultAction::OtherRange { by, admits } => Some(OtherRange { by, admits }),
        _ => None,
    })
}

/// Bends the head of an answer.
pub(super) fn bend<B>(hits: &[Hit], answer: &mut Response<B>) {
    let headers = answer.headers_mut();
    for hit in hits {
        match &hit.action {
            FaultAction::WrongLength { by } => {
                let length =
                    headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                if let Some(length) = length.map(|length: u64| length.saturating_add_signed(*by)) {
                    headers.insert(http::header::CONTENT_LENGTH, length.into());
                }
            }
            FaultAction::AnswerHeader { name, value } => {
                if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                    headers.insert(name, value);
                }
            }
            _ => {}
        }
    }
}
