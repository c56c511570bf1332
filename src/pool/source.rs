//! Where a pool's sessions come from: its runtime, several places, or a template.
//!
//! The process of a template starts with the first session, on a spawner's thread, is no session of the pool
//! and counts as none. It ends after the last of them, or with the pool's last thread.

use std::sync::Arc;

use super::config::PoolConfig;
use super::events::PoolEvent;
use super::placement::{PlacementRow, Placements, Turn};
use crate::cancel::CancelToken;
use crate::clock::{Clock, Moment};
use crate::error::Result;
use crate::session::{Process, Session, SessionConfig, Template, TemplateInfo};
use crate::sync::Mutex;

/// Starts sessions.
pub(super) struct Source {
    config: Arc<SessionConfig>,
    /// By fork, or cold.
    template: Option<Template>,
    /// At these places instead of the runtime's own.
    placements: Option<Placements>,
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
        let places = &config.placements;
        let placements = (!places.is_empty()).then(|| Placements::new(places, &config.session));
        let config = Arc::new(config.session.clone());
        Ok(Source { config, template, placements, told: Mutex::default() })
    }

    /// Whether sessions can be started at all, as far as that is known without starting one.
    pub(super) fn check(config: &PoolConfig) -> Result<()> {
        let limit = config.session.start_timeout;
        if config.placements.is_empty() {
            return config.session.runtime.launch(limit).map(drop);
        }
        Placements::check_programs(&config.placements, limit)
    }

    /// A new session; `stop` gives its start up.
    pub(super) fn start(&self, clock: &Clock, stop: &CancelToken) -> Result<Session> {
        match (&self.template, &self.placements) {
            (Some(template), _) => template.session_unless(stop),
            (None, Some(placements)) => placements.start(clock, stop),
            (None, None) => Session::start_unless(&self.config, stop),
        }
    }

    /// A session that came from here has a new process.
    pub(super) fn note(&self, session: &Session) {
        if let Some(placements) = &self.placements {
            placements.note(session);
        }
    }

    /// The place where this process runs, if there are several.
    pub(super) fn place_of(&self, process: &Arc<Process>) -> Option<String> {
        self.placements.as_ref()?.of(process)
    }

    pub(super) fn placements(&self, now: Moment) -> Vec<PlacementRow> {
        self.placements.as_ref().map_or_else(Vec::new, |placements| placements.rows(now))
    }

    /// What has happened to the template, and to the places, since this was asked the last time.
    pub(super) fn news(&self) -> Vec<PoolEvent> {
        let turns = self.placements.as_ref().map_or_else(Vec::new, Placements::news);
        let turned = turns.into_iter().map(|turn| match turn {
            Turn::Failed { placement, cause } => PoolEvent::PlacementFailed { placement, cause },
            Turn::Recovered { placement } => PoolEvent::PlacementRecovered { placement },
        });
        turned.chain(self.news_of_template()).collect()
    }

    fn news_of_template(&self) -> Vec<PoolEvent> {
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
