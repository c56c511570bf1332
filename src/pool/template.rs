//! A pool's template, if it has one: where its sessions come from.
//!
//! Its process starts with the first session, on a spawner's thread, is no session of the pool and counts
//! as none. It ends after the last of them, or with the pool's last thread.

use std::sync::Arc;

use super::config::PoolConfig;
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::session::{Session, SessionConfig, Template, TemplateInfo};

/// Starts sessions: by fork, or cold.
pub(super) struct Source {
    template: Option<Template>,
}

impl Source {
    pub(super) fn new(config: &PoolConfig) -> Result<Source> {
        let template = config.template.then(|| Template::lazy(&config.session)).transpose()?;
        Ok(Source { template })
    }

    /// A new session; `stop` gives its start up.
    pub(super) fn start(&self, config: &Arc<SessionConfig>, stop: &CancelToken) -> Result<Session> {
        match &self.template {
            Some(template) => template.session_unless(stop),
            None => Session::start_unless(config, stop),
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
