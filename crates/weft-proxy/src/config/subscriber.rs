//! The shell around [`Config`]: the ADS stream, the saved copy, DNS and timers drive it, and every
//! change ends in one publication to the workers. Runs on the control runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use weft_xds::ResourceType;
use weft_xds::client::{self, Command, Connection, Subscriber, Wants};
use weft_xds::session::{ClientSession, Mode, Rejection, Update, Wanted};

use super::saved;
use crate::runtime::Shared;
use crate::state::unix_now;
use crate::tls::files::FileSecrets;
use crate::upstream::dns::Dns;

/// How long the control plane may take to answer before a saved configuration is used.
const SAVED_AFTER: Duration = Duration::from_secs(1);
/// The saved copy is written this long after a change, so that a burst is written once.
const SAVE_DELAY: Duration = Duration::from_millis(500);
/// Listeners that could not bind are tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// Subscription changes that may wait for the stream.
const COMMANDS_MAX: usize = 64;

/// Where configuration comes from and is kept.
#[derive(Clone)]
pub struct Source {
    /// How to reach the control plane.
    pub options: client::Options,
    /// Who we are.
    pub node: weft_xds::pb::envoy::config::core::v3::Node,
    /// Keeps the last accepted configuration.
    pub state_dir: Option<PathBuf>,
    /// Oldest saved configuration still used.
    pub state_age_max: Duration,
    /// Ask for the hosts of the mesh, too.
    pub names: bool,
}

/// Keeps the configuration current until dropped.
pub async fn run(source: Source, shared: Arc<Shared>) {
    let changed = Arc::new(Notify::new());
    let resolved = Arc::new(Notify::new());
    let heard = Arc::new(Notify::new());
    let files = Arc::new(FileSecrets::new(shared.secrets.clone(), shared.registry.clone()));
    let dns = Arc::new(std::sync::Mutex::new(Dns::new(resolved.clone())));
    let applier = Applier {
        shared: shared.clone(),
        dns,
        files: files.clone(),
        changed: changed.clone(),
        heard: heard.clone(),
    };

    if source.names {
        shared.config().expect_names(Instant::now());
    }
    let (mut commands, received) = mpsc::channel(COMMANDS_MAX);
    let follow = |session, received| {
        Box::pin(client::run(source.options.clone(), session, applier.clone(), received))
    };
    let mut following = follow(new_session(&source), received);
    if let Some(dir) = &source.state_dir {
        // An open port proves nothing: only an answer tells that the control plane is there.
        tokio::select! {
            biased;
            () = &mut following => {}
            () = heard.notified() => {}
            () = tokio::time::sleep(SAVED_AFTER) => {
                let mut session = new_session(&source);
                restore(dir, source.state_age_max, &applier, &mut session);
                let (sender, received) = mpsc::channel(COMMANDS_MAX);
                commands = sender;
                following = follow(session, received);
            }
        }
    }
    tokio::join!(
        following,
        files.run(),
        applier.keep_current(resolved, commands),
        save_changes(source.state_dir.clone(), shared, changed),
    );
}

fn new_session(source: &Source) -> ClientSession {
    let mut session = ClientSession::new(Mode::Delta, source.node.clone());
    session.subscribe(ResourceType::Cluster, Wanted::All);
    session.subscribe(ResourceType::Listener, Wanted::All);
    if source.names {
        session.subscribe(ResourceType::NameTable, Wanted::All);
    }
    session
}

/// Starts from what an earlier run saved. The session then tells the control plane what we have,
/// and gets only what differs.
fn restore(
    dir: &std::path::Path,
    age_max: Duration,
    applier: &Applier,
    session: &mut ClientSession,
) {
    let saved = match saved::load(dir, age_max, unix_now()) {
        Ok(saved) => saved,
        Err(error) => {
            tracing::warn!(%error, "no saved configuration; waiting for the control plane");
            return;
        }
    };
    tracing::info!(dir = %dir.display(), "control plane away: starting with the saved configuration");
    for (ty, resources) in &saved {
        if let Err(rejection) = applier.apply(*ty, "saved", resources, &[]) {
            tracing::warn!(reason = rejection.reason, "saved resource not used");
        }
    }
    for (ty, wanted) in applier.after_change(None) {
        session.subscribe(ty, wanted);
    }
    let config = applier.shared.config();
    for ty in ResourceType::PUSH_ORDER {
        let held = config.held(ty).map(|held| &held.resource);
        session.seed(ty, held.map(|resource| (resource.name.clone(), resource.version.clone())));
    }
}

/// Writes the saved copy some time after each change.
async fn save_changes(dir: Option<PathBuf>, shared: Arc<Shared>, changed: Arc<Notify>) {
    let Some(dir) = dir else { return };
    loop {
        changed.notified().await;
        tokio::time::sleep(SAVE_DELAY).await;
        if shared.handover.heir.has_taken_over() {
            return; // The copy is the newer proxy's now.
        }
        let content = {
            let config = shared.config();
            match config.is_complete() {
                true => saved::encode(&config, unix_now()),
                false => continue,
            }
        };
        let dir = dir.clone();
        let stored = tokio::task::spawn_blocking(move || saved::store(&dir, &content)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(%error, "configuration not saved");
        }
    }
}

/// Applies changes and publishes what comes of them.
#[derive(Clone)]
struct Applier {
    shared: Arc<Shared>,
    dns: Arc<std::sync::Mutex<Dns>>,
    files: Arc<FileSecrets>,
    /// Something was accepted: the saved copy is out of date.
    changed: Arc<Notify>,
    /// The control plane sent something.
    heard: Arc<Notify>,
}

impl Applier {
    fn dns(&self) -> std::sync::MutexGuard<'_, Dns> {
        self.dns.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn apply(
        &self,
        ty: ResourceType,
        version: &str,
        upserts: &[weft_xds::Resource],
        removes: &[Arc<str>],
    ) -> Result<(), Rejection> {
        let dns = self.dns();
        let lookup = |name: &str| dns.addresses(name);
        self.shared.config().apply(ty, version, upserts, removes, Instant::now(), &lookup)
    }

    /// What follows from a change of one type, or of all: names and files to watch, listeners to
    /// start, tables to publish. Returns the subscriptions that may differ now.
    fn after_change(&self, ty: Option<ResourceType>) -> Vec<(ResourceType, Wanted)> {
        let mut dns = self.dns();
        let mut config = self.shared.config();
        // Only clusters and listeners refer to other resources.
        let refers = matches!(ty, None | Some(ResourceType::Cluster | ResourceType::Listener));
        if refers {
            config.forget_unwanted();
            self.files.watch(config.secret_names().files);
            dns.follow(config.tables().clusters(), |name| config.unresolved(name));
        }
        config.admit(Instant::now());
        self.shared.publish(&config);
        self.changed.notify_one();
        match refers {
            true => config.wanted().into(),
            false => Vec::new(),
        }
    }

    /// Acts on what no update announces: names that resolve anew, secrets that arrive, time.
    async fn keep_current(&self, resolved: Arc<Notify>, commands: mpsc::Sender<Command>) {
        let mut secrets = self.shared.secrets.subscribe();
        loop {
            let deadline = self.shared.config().next_deadline();
            let binds_failed = self.shared.listeners().failed().next().is_some();
            let wake = match (deadline, binds_failed) {
                (Some(deadline), _) => deadline,
                (None, true) => Instant::now() + BIND_AGAIN,
                (None, false) => Instant::now() + Duration::from_secs(3600),
            };
            tokio::select! {
                () = resolved.notified() => {
                    let dns = self.dns();
                    self.shared.config().reresolve(&|name| dns.addresses(name), Instant::now());
                }
                _ = secrets.changed() => {}
                () = self.shared.listeners_changed.notified() => continue,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let wanted = {
                let mut config = self.shared.config();
                let replaced = config.admit(Instant::now());
                self.shared.publish(&config);
                if config.is_complete() {
                    self.changed.notify_one();
                }
                // A listener that replaced another may have dropped a route name.
                replaced.then(|| config.wanted())
            };
            for (ty, wanted) in wanted.into_iter().flatten() {
                // The queue is long enough; what is lost is said again with the next update.
                let _ = commands.try_send(Command { ty, wanted });
            }
        }
    }

    fn count(&self, ty: ResourceType, result: &str) {
        let name = "weft_proxy_config_updates_total";
        let labels = [("type", ty.short()), ("result", result)];
        self.shared
            .registry
            .counter(name, "Configuration updates by type and result.", &labels)
            .inc();
    }
}

impl Subscriber for Applier {
    fn on_update(&mut self, update: &Update, wants: &mut Wants) -> Result<(), Rejection> {
        let Update { ty, version, upserts, removes, .. } = update;
        self.heard.notify_one();
        let result = self.apply(*ty, version, upserts, removes);
        match &result {
            Ok(()) => self.count(*ty, "accepted"),
            Err(rejection) => {
                self.count(*ty, "rejected");
                tracing::error!(%ty, reason = rejection.reason, "configuration refused");
            }
        }
        for (ty, wanted) in self.after_change(Some(*ty)) {
            wants.set(ty, wanted);
        }
        self.shared.listeners_changed.notify_one();
        result
    }

    fn on_connection(&mut self, connection: &Connection) {
        let connected = matches!(connection, Connection::Connected { .. });
        let gauge = self.shared.registry.gauge(
            "weft_proxy_control_plane_connected",
            "1 while an ADS stream to the control plane is open.",
            &[],
        );
        gauge.set(i64::from(connected));
        if !connected {
            self.shared.channels.send_replace(None);
        }
    }

    fn on_channel(&mut self, channel: &tonic::transport::Channel) {
        self.shared.channels.send_replace(Some(channel.clone()));
    }
}
