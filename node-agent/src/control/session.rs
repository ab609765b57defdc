//! The conversation with the server: a credential, reports, the assignment, and progress.
//!
//! Everything is a level. A report carries all facts, an assignment all that is wanted, progress where the work is now; so a
//! lost message costs time only. While the server can't be reached the data plane goes on as it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nftfleet_domain::ids::NodeName;
use nftfleet_web_api_spec::problem::ProblemCode;
use nftfleet_web_api_spec::types::{Assignment, Enrolled, Enrolment, ProgressReport, ReportSubmission};
use tokio::sync::{Notify, RwLock, watch};

use super::client::{Client, ClientError};
use crate::clock::Clock;
use crate::disk;
use crate::facts::{self, Paths};
use crate::host::Host;
use crate::pause::Pause;

/// How long a long-poll waits for a change.
const LONG_POLL: Duration = Duration::from_secs(25);

/// How the agent gets its credential.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's name.
    pub node: NodeName,
    /// File with the enrolment token, read only when a credential is needed: it may be gone afterwards.
    pub token_file: Option<PathBuf>,
    /// Where the credential is kept.
    pub credential_file: PathBuf,
}

/// What is heard from the server and told to it, shared with the switchover. Without a server nothing is ever heard.
#[derive(Debug)]
pub struct Link {
    /// What the server wants; none until it was reached for the first time since the start.
    pub assignment: watch::Sender<Option<Assignment>>,
    /// Where the work is; the newest is told until the server has heard it.
    pub progress: watch::Sender<Option<ProgressReport>>,
    /// The newest progress that the server has heard or refused for good.
    pub told: watch::Sender<Option<ProgressReport>>,
    /// Asks for a report out of turn.
    pub report_now: Notify,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            assignment: watch::channel(None).0,
            progress: watch::channel(None).0,
            told: watch::channel(None).0,
            report_now: Notify::new(),
        }
    }
}

/// The conversation with the server.
#[derive(Debug)]
pub struct Session {
    client: Client,
    identity: Identity,
    credential: RwLock<Option<String>>,
    link: Arc<Link>,
}

impl Session {
    /// A session that has not begun.
    pub fn new(client: Client, identity: Identity, link: Arc<Link>) -> Self {
        let kept = disk::read::<Enrolled>(&identity.credential_file).ok().flatten();
        Self {
            client,
            identity,
            credential: RwLock::new(kept.map(|enrolled| enrolled.credential)),
            link,
        }
    }

    /// The credential, by enrolling if there is none; tries until it has one.
    async fn credential(&self) -> String {
        let mut pause = Pause::default();
        loop {
            if let Some(credential) = self.credential.read().await.clone() {
                return credential;
            }
            let mut slot = self.credential.write().await;
            if slot.is_none() {
                match self.enrol().await {
                    Ok(credential) => *slot = Some(credential),
                    Err(error) => {
                        drop(slot);
                        tracing::warn!(%error, "enrolment failed; trying again");
                        pause.wait().await;
                    }
                }
            }
        }
    }

    async fn enrol(&self) -> Result<String, EnrolError> {
        let file = self.identity.token_file.as_ref().ok_or(EnrolError::NoToken)?;
        let text = tokio::fs::read_to_string(file).await;
        let token = text
            .map_err(|source| EnrolError::Token {
                file: file.clone(),
                source,
            })?
            .trim()
            .to_owned();
        let enrolment = Enrolment {
            token,
            node: self.identity.node.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let enrolled = self.client.enrol(&enrolment).await?;
        let (file, kept) = (self.identity.credential_file.clone(), enrolled.clone());
        tokio::task::spawn_blocking(move || disk::write(&file, &kept))
            .await
            .map_err(EnrolError::Panicked)??;
        tracing::info!(cluster = enrolled.cluster, node = %self.identity.node, "enrolled");
        Ok(enrolled.credential)
    }

    /// A credential that the server does not know any more is thrown away, if a token is there to get a new one.
    async fn refused(&self, error: &ClientError, used: &str) {
        if error.code() == Some(ProblemCode::Unauthenticated) && self.identity.token_file.is_some() {
            let mut slot = self.credential.write().await;
            if slot.as_deref() == Some(used) {
                *slot = None;
            }
        }
    }

    /// Asks for the assignment until the process ends.
    pub async fn poll(&self) {
        let mut pause = Pause::default();
        loop {
            let credential = self.credential().await;
            let known = self
                .link
                .assignment
                .borrow()
                .as_ref()
                .map(|assignment| assignment.generation);
            let wait = if known.is_some() { LONG_POLL } else { Duration::ZERO };
            match self.client.assignment(&credential, known, wait).await {
                Ok(assignment) => {
                    pause = Pause::default();
                    self.hear(assignment);
                }
                Err(error) => {
                    tracing::warn!(%error, "the assignment could not be asked for; the data plane stays as it is");
                    self.refused(&error, &credential).await;
                    pause.wait().await;
                }
            }
        }
    }

    /// Keeps the assignment. Its generation may be lower than before: then the server was put back to an older state, and that
    /// is what it wants now.
    fn hear(&self, heard: Assignment) {
        self.link.assignment.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(&heard);
            if is_news {
                tracing::info!(generation = heard.generation, work = ?heard.work, "assignment");
                *known = Some(heard);
            }
            is_news
        });
    }

    /// Tells the newest progress until the process ends.
    pub async fn tell(&self) {
        let mut newest = self.link.progress.subscribe();
        let mut pause = Pause::default();
        loop {
            let progress = newest.borrow_and_update().clone();
            if let Some(progress) = progress {
                let credential = self.credential().await;
                match self.client.progress(&credential, &progress).await {
                    // Its answer is passed over: only `poll` hears assignments, one after another, so that none overtakes.
                    Ok(_) => {
                        pause = Pause::default();
                        self.link.told.send_replace(Some(progress));
                    }
                    Err(error) if !error.is_final() => {
                        tracing::warn!(%error, "progress could not be told; trying again");
                        self.refused(&error, &credential).await;
                        // A newer word is told at once; the old one would be stale by then.
                        let _ = tokio::time::timeout(pause.length(), newest.changed()).await;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, ?progress, "the server does not want to hear this any more");
                        self.link.told.send_replace(Some(progress));
                    }
                }
            }
            if newest.changed().await.is_err() {
                return;
            }
        }
    }

    /// Collects and sends reports until the process ends: at once, as often as the server asks, and out of turn.
    pub async fn report(&self, host: Arc<dyn Host>, paths: Paths, clock: Arc<dyn Clock>) {
        let mut sequence = clock.now().as_millisecond();
        let mut pause = Pause::default();
        loop {
            let (host, paths, now) = (Arc::clone(&host), paths.clone(), clock.now());
            let collected = tokio::task::spawn_blocking(move || facts::collect(&*host, &paths, now)).await;
            let Ok(report) = collected else {
                tracing::error!("collecting the facts panicked");
                pause.wait().await;
                continue;
            };
            let credential = self.credential().await;
            let submission = ReportSubmission {
                sequence,
                report: report.into(),
            };
            let next = match self.client.report(&credential, &submission).await {
                Ok(accepted) => {
                    pause = Pause::default();
                    if accepted.sequence > sequence {
                        // The clock was set back, or another agent reports for this node: go on above what is known.
                        sequence = accepted.sequence + 1;
                        continue;
                    }
                    Duration::from_secs(u64::from(accepted.next_report_seconds.max(1)))
                }
                Err(error) => {
                    tracing::warn!(%error, "the report could not be sent");
                    self.refused(&error, &credential).await;
                    pause.length()
                }
            };
            sequence += 1;
            let _ = tokio::time::timeout(next, self.link.report_now.notified()).await;
        }
    }
}

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("there is no credential yet, and no enrolment token is given")]
    NoToken,
    #[error("the enrolment token can't be read from {}: {source}", .file.display())]
    Token { file: PathBuf, source: std::io::Error },
    #[error("keeping the credential panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the credential can't be kept: {0}")]
    Keep(#[from] disk::DiskError),
}
