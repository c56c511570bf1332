//! The warm-up of a new session: modules and code, with what came of each.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::ask::{Asked, Silence};
use super::collector::Collector;
use super::exchange::STDERR_TAIL;
use super::execution::ExecutionError;
use super::features::Feature;
use super::ladder::Stops;
use super::{Session, answer::ImportReport};
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// Output of the warm-up that is kept, to be shown when it fails.
pub(super) const OUTPUT_CAP: usize = 2 * STDERR_TAIL;

/// What came of a session's warm-up, from [`Session::warm_report`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmReport {
    /// Each of the [`warm_imports`](crate::SessionConfig::warm_imports), in order.
    pub imports: Vec<WarmImport>,
    /// How long the [`warmup_code`](crate::SessionConfig::warmup_code) took.
    pub code_time: Option<Duration>,
    /// The exception that it raised, where that is
    /// [ignored](crate::SessionConfig::ignore_warmup_errors).
    pub code_error: Option<ExecutionError>,
}

/// What came of one warm import.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarmImport {
    /// The module.
    pub module: String,
    /// How long the import took.
    pub time: Duration,
    /// What it added to the worker's resident memory, in bytes, as far as the worker can tell.
    pub memory: Option<u64>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Session {
    /// Has the worker do what its configuration asks for, before the deadline.
    pub(super) fn warm_up(&mut self, deadline: Moment) -> Result<()> {
        let config = Arc::clone(&self.config);
        if !config.warm_imports.is_empty() || config.warmup_code.is_some() {
            self.require(Feature::Warm)?;
        }
        if !config.warm_imports.is_empty() {
            let modules = serde_json::json!(config.warm_imports).to_string();
            let report = self.warm_step(modules.as_bytes(), "", deadline, None)?;
            self.take_imports(&report.map_err(|error| warm_up_error("warm_imports", error))?)?;
        }
        if let Some(code) = &config.warmup_code {
            let started = Moment::now();
            let limit = config.warmup_time_limit.map(|limit| started + limit);
            let report = self.warm_step(b"[]", code, deadline, limit)?;
            self.warm.code_time = Some(Moment::now().saturating_since(started));
            match report {
                Ok(_) => {}
                Err(error)
                    if limit.is_some_and(|limit| Moment::now() >= limit) && !config.ignore_warmup_errors =>
                {
                    let limit = config.warmup_time_limit.unwrap_or_default();
                    let message =
                        format!("it was interrupted after its time limit of {limit:?} ({})", error.kind);
                    return Err(Error::WarmUp {
                        what: "warmup_code".to_owned(),
                        message,
                        traceback: error.traceback,
                    });
                }
                Err(error) if config.ignore_warmup_errors => {
                    log::warn!(session = self.id.0, kind = error.kind.as_str(); "the warm-up code failed");
                    self.warm.code_error = Some(error);
                }
                Err(error) => return Err(warm_up_error("warmup_code", error)),
            }
        }
        Ok(())
    }

    /// One *warm* request. `limit`: when its code is interrupted; `deadline`: when the start fails.
    fn warm_step(
        &mut self,
        modules: &[u8],
        code: &str,
        deadline: Moment,
        limit: Option<Moment>,
    ) -> Result<Result<Vec<u8>, ExecutionError>> {
        let (id, cap) = (self.next_request(), self.config.frame_cap);
        let frame = protocol::encode(Kind::Warm, id, modules, code.as_bytes(), cap)
            .ok_or(Error::RequestTooLarge { bytes: modules.len() + code.len(), cap })?;
        let stops = Stops { soft: limit, hard: Some(deadline), grace: self.config.grace, ..self.stops() };
        let answer = self.start_step(id, frame, Kind::Warmed, stops);
        match answer {
            // The start has time left: it was its own limit.
            Err(Error::StartTimeout { .. }) if limit.is_some() && Moment::now() < deadline => {
                let limit = self.config.warmup_time_limit.unwrap_or_default();
                Err(Error::WarmUp {
                    what: "warmup_code".to_owned(),
                    message: format!("it did not end within {limit:?}, nor when it was interrupted"),
                    traceback: String::new(),
                })
            }
            other => other,
        }
    }

    fn take_imports(&mut self, report: &[u8]) -> Result<()> {
        let report: Vec<ImportReport> = serde_json::from_slice(report)
            .map_err(|error| self.break_off(format!("a warm report that cannot be read: {error}")))?;
        for import in report {
            let time = Duration::try_from_secs_f64(import.milliseconds / 1e3).unwrap_or_default();
            let ImportReport { module, error, bytes, .. } = import;
            match &error {
                None => {
                    let milliseconds = time.as_secs_f64() * 1e3;
                    log::debug!(session = self.id.0, module = module.as_str(), elapsed_ms = milliseconds; "warm import done");
                }
                Some(error) if self.config.require_warm_imports => {
                    let what = format!("import of {module}");
                    return Err(Error::WarmUp { what, message: error.clone(), traceback: String::new() });
                }
                Some(error) => {
                    let (module, error) = (module.as_str(), error.as_str());
                    log::warn!(session = self.id.0, module, error; "a warm import failed");
                }
            }
            self.warm.imports.push(WarmImport { module, time, memory: bytes, error });
        }
        Ok(())
    }

    /// One request of the start, with its failures.
    pub(super) fn start_step(
        &mut self,
        id: u64,
        frame: Vec<u8>,
        kind: Kind,
        stops: Stops,
    ) -> Result<Result<Vec<u8>, ExecutionError>> {
        let bound = self.bound.clone();
        let registration = self.register(bound.as_ref());
        let stops = Stops { tokens: [bound.clone(), None], ..stops };
        let Asked { answer, stderr } = self.ask(id, frame, kind, stops, Collector::quiet(OUTPUT_CAP));
        drop(registration);
        if bound.as_ref().is_some_and(CancelToken::is_cancelled) {
            self.process().kill_group(super::Cause::Retired);
            return Err(Error::Cancelled);
        }
        let limit = self.config.start_timeout;
        match answer {
            Ok(answer) => Ok(answer),
            Err(Silence::Cancelled) => Err(Error::Cancelled),
            Err(Silence::Late) => Err(Error::StartTimeout { session: self.id, limit, stderr }),
            Err(Silence::Died) => Err(self.died(stderr)),
            Err(Silence::Broken(reason)) => {
                if self.process().ends_within(super::exchange::END_PATIENCE) && !stderr.is_empty() {
                    return Err(self.died(stderr));
                }
                Err(self.break_off(reason))
            }
        }
    }
}

fn warm_up_error(what: &str, error: ExecutionError) -> Error {
    Error::WarmUp { what: what.to_owned(), message: error.to_string(), traceback: error.traceback }
}
