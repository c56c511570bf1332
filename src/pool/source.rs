//! A pool's template, if it has one: where its sessions come from.
//!
//! Its process starts with the first session, on a spawner's thread, is no session of the pool and counts
//! as none. It ends after the last of them, or with the pool's last thread.

use std::sync::Arc;

use super::config::PoolConfig;
use super::events::PoolEvent;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::session::{Session, SessionConfig, Template, TemplateInfo};
use crate::sync::Mutex;

/// Starts sessions: by fork, or cold.
pub(super) struct Source {
    template: Option<Template>,
    told: Mutex<Told>,
}

/// What the listener knows of the template.
#[derive(Default)]
struct Told {
    starts: u64,
    why_not: Option<String>,
}

impl Source {
    pub(super) fn new(config: &PoolConfig) -> Result<Source> {
        let template = config.template.then(|| Template::lazy(&config.session)).transpose()?;
        Ok(Source { template, told: Mutex::default() })
    }

    /// A new session; `stop` gives its start up.
    pub(super) fn start(&self, config: &Arc<SessionConfig>, stop: &CancelToken) -> Result<Session> {
        match &self.template {
            Some(template) => template.session_unless(stop),
            None => Session::start_unless(config, stop),
        }
    }

    /// What has happened to the template since this was asked the last time.
    pub(super) fn news(&self) -> Vec<PoolEvent> {
        let Some(template) = &self.template else { return Vec::new() };
        let info = template.info();
        let mut told = self.told.lock();
        let mut news = Vec::new();
        if info.starts > told.starts {
            told.starts = info.starts;
            news.extend(info.pid.map(|pid| PoolEvent::TemplateStarted { pid }));
        }
        if info.why_not != told.why_not {
            told.why_not.clone_from(&info.why_not);
            news.extend(info.why_not.map(|cause| PoolEvent::TemplateFellBack { cause }));
        }
        news
    }

    /// Later sessions come from a template that has warmed up after this.
    pub(super) fn renew(&self) {
        if let Some(template) = &self.template {
            template.renew();
        }
    }

    pub(super) fn info(&self) -> Option<TemplateInfo> {
        self.template.as_ref().map(Template::info)
    }

    /// Ends the template's process and waits for that; what is held still of its sessions lives on.
    pub(super) fn terminate(&self) {
        if let Some(template) = &self.template {
            template.terminate();
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // The last owner of a pool may be the reaper's thread, which must not wait for its own work.
        if let Some(template) = &self.template {
            template.let_go();
        }
    }
}
