//! From what a call requires to a folder it can import from.
//!
//! Rule: three things can come of it, and the answer says which. The stack has it all; or what it lacks is added behind
//! it; or, where the two contradict one another, the set takes the stack's place altogether.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use protocol::PackageUse;
use sandbox::Reaper;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::cache::{Answer, Cache, Lease};
use crate::config::{IndexUrl, PackagesConfig, Target};
use crate::error::{PackageError, Reason};
use crate::installed::{Package, installed};
use crate::installer::{Installer, Place};
use crate::names;
use crate::pin::{Pin, pins};
use crate::process::Bounds;
use crate::requirement::{Against, Parsed, Wanted, parse};
use crate::shared::{Offered, SharedSets};
use crate::workshop::{self, Workshop};

/// Installers that run at the same time.
const INSTALLERS: usize = 2;
/// How long bytecode may take to compile.
const COMPILE_PATIENCE: Duration = Duration::from_secs(120);
/// Requirements of one call.
const MAX_REQUIREMENTS: usize = 64;

/// The packages of one Python tree.
pub struct Packages {
    config: PackagesConfig,
    target: Target,
    stack: OnceLock<Vec<Package>>,
    /// Or why there is none.
    workshop: Result<Workshop, PackageError>,
    shared: Arc<SharedSets>,
    gates: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    installers: Semaphore,
}

/// What a call can import from while this is held.
#[derive(Debug)]
pub struct Prepared {
    /// Which of the three it is.
    pub outcome: PackageUse,
    /// `name==version` of what was installed for it, now or before.
    pub installed: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Whether nothing had to be installed.
    pub remembered: bool,
    set: Option<String>,
    lease: Option<Lease>,
}

impl Prepared {
    /// The folder to import from.
    pub fn directory(&self) -> Option<&Path> {
        self.lease.as_ref().map(|lease| lease.directory.as_path())
    }

    fn new(answer: Answer, lease: Option<Lease>, notes: Vec<String>) -> Self {
        let outcome = match (&answer.set, answer.separate) {
            (None, _) => PackageUse::Satisfied,
            (Some(_), false) => PackageUse::Added,
            (Some(_), true) => PackageUse::Separate,
        };
        Self { outcome, installed: answer.packages, notes, remembered: false, set: answer.set, lease }
    }
}

impl Packages {
    /// `landlock`: whether kernels are behind it.
    pub fn new(config: PackagesConfig, target: Target, reaper: Arc<Reaper>, landlock: bool) -> Self {
        let workshop = workshop::open(&config, &target, reaper, landlock);
        if let Err(error) = &workshop {
            tracing::info!(reason = %error, "packages can't be installed");
        }
        let shared = Arc::new(SharedSets::new(config.s3_bucket.clone()));
        Self {
            config,
            target,
            stack: OnceLock::new(),
            workshop,
            shared,
            gates: Mutex::default(),
            installers: Semaphore::new(INSTALLERS),
        }
    }

    /// Where sets are kept.
    pub fn directory(&self) -> &Path {
        &self.config.directory
    }

    /// What the tree carries. Read when first asked for: the first answer of a server must not wait for it.
    pub fn stack(&self) -> &[Package] {
        self.stack.get_or_init(|| installed(&self.target.site))
    }

    /// Makes what is required importable. `say` hears what is being done. Dropping the future ends an install.
    ///
    /// # Errors
    /// The first requirement that is refused, or why there is no such set.
    pub async fn prepare(
        &self,
        requirements: &[String],
        deadline: Option<Instant>,
        say: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Prepared, PackageError> {
        if requirements.len() > MAX_REQUIREMENTS {
            let message =
                format!("{} requirements are more than the {MAX_REQUIREMENTS} that a call may have", requirements.len());
            return Err(PackageError::new(Reason::TooMany, message));
        }
        let (mut wanted, mut notes) = (Vec::new(), Vec::new());
        for text in requirements {
            let (parsed, note) = parse(text)?;
            notes.extend(note);
            if let Parsed::Wanted(requirement) = parsed {
                self.refuse(&requirement.name)?;
                wanted.push(requirement);
            }
        }
        wanted.sort_by_key(Wanted::line);
        wanted.dedup();
        let stack = self.stack();
        if wanted.iter().all(|requirement| requirement.against(stack) == Against::Satisfied) {
            return Ok(Prepared::new(Answer::default(), None, notes));
        }
        let workshop = self.workshop.as_ref().map_err(Clone::clone)?;
        if workshop.let_in_by_rule && !workshop.cache.is_where_it_was() {
            return Err(moved_away(&self.config));
        }
        let key = self.key_of(&wanted);
        if let Some(found) = remembered(&workshop.cache, &key).await? {
            // The lists may be others than when it was installed.
            self.refuse_brought(&found.0)?;
            return Ok(found.with(notes));
        }
        let timeout = Instant::now() + self.config.timeout;
        let deadline = deadline.map_or(timeout, |deadline| deadline.min(timeout));
        let _first = self.gate(&key).await;
        if let Some(found) = remembered(&workshop.cache, &key).await? {
            return Ok(found.with(notes));
        }
        let made = async {
            let _place = self.installers.acquire().await;
            self.make(workshop, &wanted, deadline, say).await
        };
        let (answer, lease) = tokio::time::timeout_at(deadline.into(), made).await.unwrap_or_else(|_| {
            Err(PackageError::new(Reason::InstallTimeout, "installing took longer than INSTALL_TIMEOUT allows and was ended"))
        })?;
        let known = answer.clone();
        on_disk(&workshop.cache, move |cache| cache.remember(&key, known)).await?;
        Ok(Prepared::new(answer, lease, notes))
    }

    /// After the first use of a set: compiles its bytecode, so that the next import is faster.
    pub fn used(self: &Arc<Self>, prepared: &Prepared) {
        let (Ok(workshop), Some(set)) = (&self.workshop, prepared.set.clone()) else { return };
        if !workshop.cache.takes_bytecode(&set) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let Ok(workshop) = &this.workshop else { return };
            let name = set.clone();
            let Ok(Some(lease)) = on_disk(&workshop.cache, move |cache| cache.lease(&name)).await else { return };
            let bounds = Bounds {
                deadline: Instant::now() + COMPILE_PATIENCE,
                bytes: this.config.install_bytes,
                watched: vec![lease.directory.clone()],
                writable: vec![lease.directory.clone()],
            };
            match workshop.installer.compile(&lease.directory, &bounds).await {
                Ok(()) => {
                    let _ = on_disk(&workshop.cache, move |cache| cache.has_bytecode(&set)).await;
                }
                Err(error) => tracing::warn!(%error, "bytecode was not compiled"),
            }
        });
    }

    fn is_in_stack(&self, name: &str) -> bool {
        self.stack().iter().any(|package| package.name == name)
    }

    /// What the operator's lists say to a name.
    fn refuse(&self, name: &str) -> Result<(), PackageError> {
        if has(&self.config.blocked, name) {
            return Err(PackageError::new(Reason::Blocked, format!("{name} is in BLOCKED_PACKAGES and is not installed here")));
        }
        if self.is_in_stack(name) || has(&self.config.allowed, name) {
            return Ok(());
        }
        if !self.config.allowed.is_empty() {
            let message = format!("{name} is not in ALLOWED_PACKAGES; there are {}", self.config.allowed.join(", "));
            return Err(PackageError::new(Reason::NotAllowed, message));
        }
        self.refuse_slip(name, name)
    }

    /// `which`: how a person is told of it.
    fn refuse_slip(&self, name: &str, which: &str) -> Result<(), PackageError> {
        match names::meant(name) {
            Some(meant) if !has(&self.config.known, name) => Err(PackageError::new(
                Reason::LikelyTyposquat,
                format!(
                    "{which} is one slip away from the well-known {meant}: did you mean {meant}? An operator can put {name} in KNOWN_PACKAGES"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// What the operator's lists say to all that comes along.
    fn refuse_brought(&self, answer: &Answer) -> Result<(), PackageError> {
        let names = || answer.packages.iter().map(|package| package.split("==").next().unwrap_or_default());
        if let Some(name) = names().find(|name| has(&self.config.blocked, name)) {
            let message = format!("{name} is needed too, is in BLOCKED_PACKAGES and is not installed here");
            return Err(PackageError::new(Reason::Blocked, message));
        }
        let is_stray = |name: &&str| !has(&self.config.allowed, name) && !self.is_in_stack(name);
        if let Some(name) = names().find(is_stray).filter(|_| !self.config.allowed.is_empty()) {
            let message = format!("{name} is needed too, and is not in ALLOWED_PACKAGES");
            return Err(PackageError::new(Reason::NotAllowed, message));
        }
        for name in answer.doubtful.iter().filter(|name| !has(&self.config.allowed, name)) {
            self.refuse_slip(name, &format!("{name} is needed too, and"))?;
        }
        let (count, most) = (answer.packages.len(), self.config.install_packages);
        if count > most {
            let message = format!("it needs {count} packages, more than the {most} of MAX_INSTALL_PACKAGES");
            return Err(PackageError::new(Reason::TooMany, message));
        }
        Ok(())
    }

    async fn make(
        &self,
        workshop: &Workshop,
        wanted: &[Wanted],
        deadline: Instant,
        say: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(Answer, Option<Lease>), PackageError> {
        let Workshop { cache, installer, .. } = workshop;
        let (work, downloads) = on_disk(cache, |cache| (cache.work(), cache.downloads())).await?;
        let work = work.map_err(|error| PackageError::folder_fault("making a folder to install in", &error))?;
        let kept = downloads.as_ref().map(|downloads| downloads.0.clone());
        let place = Place { work: work.0.clone(), downloads: kept.clone().unwrap_or_else(|| work.0.join("downloads")) };
        let folders = std::iter::once(work.0.clone()).chain(kept.clone()).collect::<Vec<_>>();
        let bounds = Bounds { deadline, bytes: self.config.install_bytes, watched: folders.clone(), writable: folders };
        say("resolving");
        let listed = self.listed().await?;
        let resolved = self.resolve(installer, &place, wanted, listed.as_ref(), &bounds).await;
        forget_half(cache, &resolved, kept.as_ref()).await;
        let (pins, separate) = resolved?;
        if pins.is_empty() {
            return Ok((Answer::default(), None));
        }
        let set = self.name_of(&pins, separate);
        let asked = |name: &str| wanted.iter().any(|requirement| requirement.name == name);
        let doubtful = names::doubtful(&pins, asked, |name| self.is_in_stack(name));
        let answer = Answer { set: Some(set.clone()), separate, packages: pins.iter().map(Pin::line).collect(), doubtful };
        self.refuse_brought(&answer)?;
        let _only = self.gate(&set).await;
        let name = set.clone();
        if let Some(lease) = on_disk(cache, move |cache| cache.lease(&name)).await? {
            return Ok((answer, Some(lease)));
        }
        let target = work.0.join("target");
        let offered = self.shared.fetch(&set, &work.0, &target, self.config.install_bytes).await;
        if offered == Offered::Set {
            say(&format!("fetched {}", answer.packages.join(", ")));
        } else {
            say(&format!("installing {}", answer.packages.join(", ")));
            let mut downloaded = 0;
            let mut count = || {
                downloaded += 1;
                say(&format!("downloaded {} of {}", downloaded.min(pins.len()), pins.len()));
            };
            let installed = installer.install(&place, &pins, &target, &bounds, &mut count).await;
            forget_half(cache, &installed, kept.as_ref()).await;
            installed?;
            if !cache.is_guarded() {
                // Before any code can have written to it.
                self.shared.keep(&set, &target, &work.0, &offered).await;
            }
        }
        let name = set.clone();
        // The folder goes along: where the call ends meanwhile, it must not be removed under what is being published.
        let (lease, work) = on_disk(cache, move |cache| {
            let lease = cache.publish(&target, &name);
            cache.make_room(downloads.as_ref());
            (lease, work)
        })
        .await?;
        let lease = lease.map_err(|error| PackageError::folder_fault("putting the packages in their place", &error))?;
        if offered != Offered::Set {
            if cache.is_guarded() && self.shared.is_there() {
                let (shared, set, folder) = (self.shared.clone(), set.clone(), lease.directory.clone());
                tokio::spawn(async move { shared.keep(&set, &folder, &work.0, &offered).await });
            }
            say(&format!("installed {} packages", pins.len()));
        }
        Ok((answer, Some(lease)))
    }

    /// Versions with the stack as it is; where there are none, of everything in place of the stack.
    async fn resolve(
        &self,
        installer: &Installer,
        place: &Place,
        wanted: &[Wanted],
        listed: Option<&BTreeMap<String, Pin>>,
        bounds: &Bounds,
    ) -> Result<(Vec<Pin>, bool), PackageError> {
        let stack = self.stack();
        let nothing = BTreeMap::new();
        let extra = listed.unwrap_or(&nothing);
        let contradicts = wanted.iter().any(|requirement| requirement.against(stack) == Against::OtherVersion);
        let mut first = Err(PackageError::new(Reason::NoSolution, ""));
        if !contradicts {
            first = installer.resolve(place, wanted, Some(stack), extra, bounds).await;
        }
        let (mut pins, separate) = match first {
            Ok(pins) => (pins, false),
            Err(error) if matches!(error.reason, Reason::NoSolution | Reason::NotFound | Reason::NoWheel) => {
                (installer.resolve(place, wanted, None, extra, bounds).await?, true)
            }
            Err(error) => return Err(error),
        };
        if !separate {
            pins.retain(|pin| !stack.iter().any(|package| package.name == pin.name && package.version == pin.version));
        }
        if let Some(listed) = listed {
            for pin in &mut pins {
                let known = listed.get(&pin.name).filter(|known| known.version == pin.version && !known.hashes.is_empty());
                let known = known.ok_or_else(|| {
                    PackageError::new(Reason::HashMissing, format!("{} has no hash in the operator's PACKAGE_HASHES", pin.line()))
                })?;
                pin.hashes.clone_from(&known.hashes);
            }
        }
        if let Some(pin) = pins.iter().find(|pin| pin.hashes.is_empty()) {
            return Err(PackageError::new(Reason::HashMissing, format!("the index gives no hash for {}", pin.line())));
        }
        pins.sort();
        Ok((pins, separate))
    }

    /// The operator's list of hashes.
    async fn listed(&self) -> Result<Option<BTreeMap<String, Pin>>, PackageError> {
        let Some(path) = &self.config.hashes else { return Ok(None) };
        let text = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| PackageError::new(Reason::Failed, format!("PACKAGE_HASHES can't be read: {}", error.kind())))?;
        Ok(Some(pins(&text)?.into_iter().map(|pin| (pin.name.clone(), pin)).collect()))
    }

    /// One caller at a time; the others find what it has made.
    async fn gate(&self, key: &str) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            gates.entry(key.to_owned()).or_default().clone()
        };
        gate.lock_owned().await
    }

    /// Python tag and platform.
    fn tag(&self) -> String {
        let mut version = self.target.version.split('.');
        let (major, minor) = (version.next().unwrap_or_default(), version.next().unwrap_or_default());
        format!("cp{major}{minor}-linux-{}", std::env::consts::ARCH)
    }

    /// Names what is asked for, and under which rules and beside which stack.
    fn key_of(&self, wanted: &[Wanted]) -> String {
        let mut hash = Sha256::new();
        let stack = self.stack().iter().map(|package| format!("{}=={}", package.name, package.version));
        let rules = [
            self.tag(),
            format!("{:?}", (self.config.index.as_ref().map(IndexUrl::as_str), self.config.min_age, &self.config.hashes)),
        ];
        for line in rules.into_iter().chain(wanted.iter().map(Wanted::line)).chain(["stack".to_owned()]).chain(stack) {
            hash.update(line.as_bytes());
            hash.update([0]);
        }
        format!("{:x}", hash.finalize())
    }

    /// Names a set by what is in it.
    fn name_of(&self, pins: &[Pin], separate: bool) -> String {
        let mut hash = Sha256::new();
        hash.update(self.tag().as_bytes());
        hash.update([u8::from(separate)]);
        for pin in pins {
            hash.update(pin.line().as_bytes());
            for file in &pin.hashes {
                hash.update(file.as_bytes());
            }
            hash.update([0]);
        }
        format!("{:x}", hash.finalize())
    }
}

fn has(list: &[String], name: &str) -> bool {
    list.iter().any(|listed| crate::installed::normal_form(listed) == name)
}

/// Does what reads and writes many files where it holds up no other task.
async fn on_disk<T: Send + 'static>(
    cache: &Arc<Cache>,
    work: impl FnOnce(&Cache) -> T + Send + 'static,
) -> Result<T, PackageError> {
    let cache = cache.clone();
    let done = tokio::task::spawn_blocking(move || work(&cache)).await;
    done.map_err(|error| PackageError::fault("looking after the packages", &error.into()))
}

/// What was downloaded of something that is too large must not stay.
async fn forget_half<T>(cache: &Arc<Cache>, done: &Result<T, PackageError>, downloads: Option<&PathBuf>) {
    if let (Err(PackageError { reason: Reason::TooLarge, .. }), Some(downloads)) = (done, downloads.cloned()) {
        let _ = on_disk(cache, move |_| sandbox::remove(&downloads)).await;
    }
}

/// A rule is for a folder and not for its name: code would be refused what is installed now.
fn moved_away(config: &PackagesConfig) -> PackageError {
    tracing::error!(folder = %config.directory.display(), "PACKAGE_DIR was removed or replaced while the server ran; restart it");
    let message = "PACKAGE_DIR was removed or replaced while the server ran, and code may read the one that was there at its \
                   start only: an operator must restart the server (to clear it, empty its folder sets)";
    PackageError::new(Reason::Failed, message)
}

/// A set found again.
struct Found(Answer, Option<Lease>);

impl Found {
    fn with(self, notes: Vec<String>) -> Prepared {
        Prepared { remembered: true, ..Prepared::new(self.0, self.1, notes) }
    }
}

async fn remembered(cache: &Arc<Cache>, key: &str) -> Result<Option<Found>, PackageError> {
    let key = key.to_owned();
    let find = move |cache: &Cache| {
        let answer = cache.answer(&key)?;
        let Some(set) = &answer.set else { return Some(Found(answer, None)) };
        let lease = cache.lease(set)?;
        Some(Found(answer, Some(lease)))
    };
    on_disk(cache, find).await
}
