//! The data folder: who owns it, where the sockets are, and that one server at a time uses it.

use std::fs::{self, DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Uid, User, chown, geteuid};
use sha2::{Digest, Sha256};

use super::binaries::Binaries;
use super::{EmbeddedError, PORT, ROLE};

/// The kernel's limit for a socket's path, in bytes without the closing zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// Who runs Postgres, if not the server's own user.
#[derive(Clone, Debug)]
struct RunAs {
    name: String,
    uid: Uid,
    gid: Gid,
}

/// A data folder in use by this process.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    sockets: PathBuf,
    run_as: Option<RunAs>,
    _lock: Flock<File>,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> EmbeddedError + 'a {
    move |source| EmbeddedError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

impl Folder {
    /// Makes the folder if needed and locks it. The kernel drops the lock with the process, however it ends.
    pub(super) fn open(data: &Path) -> Result<Self, EmbeddedError> {
        let run_as = run_as()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(data)
            .map_err(failed("create the data folder", data))?;
        let root = data
            .canonicalize()
            .map_err(failed("find out the full path of the data folder", data))?;
        if let Some(user) = &run_as {
            can_enter(&root, user)?;
        }
        let lock = lock(&root)?;
        let sockets = sockets(&root, run_as.as_ref())?;
        Ok(Self {
            root,
            sockets,
            run_as,
            _lock: lock,
        })
    }

    /// Postgres's own folder.
    pub(super) fn data(&self) -> PathBuf {
        self.root.join("postgres")
    }

    /// The folder of the sockets.
    pub(super) fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Postgres's log file.
    pub(super) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    /// The major version that wrote the data, if there are any.
    pub(super) fn version(&self) -> Result<Option<String>, EmbeddedError> {
        let path = self.data().join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// A command that runs as the user who owns the data, without the settings of a Postgres client.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = &self.run_as {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.current_dir("/").env("LC_ALL", "C");
        command
    }

    /// Runs `initdb`, if there are no data yet. It works in a folder of another name, so that an `initdb` which was killed
    /// half way leaves nothing behind that looks like data.
    pub(super) fn initialise(&self, binaries: &Binaries) -> Result<(), EmbeddedError> {
        if self.version()?.is_some() {
            return Ok(());
        }
        let new = self.root.join("postgres.new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(failed("remove", &new))?;
        }
        private_folder(&new, self.run_as.as_ref())?;
        let program = binaries.initdb();
        let output = self
            .command(&program)
            .arg("--pgdata")
            .arg(&new)
            .args([
                "--username",
                ROLE,
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
            ])
            .output()
            .map_err(|source| EmbeddedError::Start { program, source })?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EmbeddedError::Initdb(words));
        }
        fs::rename(&new, self.data()).map_err(failed("rename", &new))
    }
}

/// None if the server is not root: then Postgres runs as the server's own user.
fn run_as() -> Result<Option<RunAs>, EmbeddedError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some(RunAs {
                name: name.to_owned(),
                uid: user.uid,
                gid: user.gid,
            }));
        }
    }
    Err(EmbeddedError::NoUser)
}

fn can_enter(folder: &Path, user: &RunAs) -> Result<(), EmbeddedError> {
    let ancestors: Vec<&Path> = folder.ancestors().collect();
    for folder in ancestors.into_iter().rev() {
        let about = fs::metadata(folder).map_err(failed("look at", folder))?;
        let mode = about.permissions().mode();
        let open = if about.uid() == user.uid.as_raw() {
            mode & 0o100
        } else if about.gid() == user.gid.as_raw() {
            mode & 0o010
        } else {
            mode & 0o001
        };
        if open == 0 {
            return Err(EmbeddedError::NoWay {
                user: user.name.clone(),
                folder: folder.to_owned(),
            });
        }
    }
    Ok(())
}

fn lock(root: &Path) -> Result<Flock<File>, EmbeddedError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => EmbeddedError::InUse(root.to_owned()),
        other => failed("lock", &path)(other.into()),
    })
}

/// Beside the data, or in the temporary folder if the path would be too long for a socket.
fn sockets(root: &Path, run_as: Option<&RunAs>) -> Result<PathBuf, EmbeddedError> {
    let beside = root.join("run");
    let file_name = format!("/.s.PGSQL.{PORT}");
    let folder = if beside.as_os_str().len() + file_name.len() <= LONGEST_SOCKET_PATH {
        beside
    } else {
        let hash = format!("{:x}", Sha256::digest(root.as_os_str().as_bytes()));
        std::env::temp_dir().join(format!("nftfleet-{}", &hash[..16]))
    };
    private_folder(&folder, run_as)?;
    Ok(folder)
}

/// Makes a folder that only its owner can enter, or checks that it is one.
fn private_folder(folder: &Path, run_as: Option<&RunAs>) -> Result<(), EmbeddedError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            if let Some(user) = run_as {
                chown(folder, Some(user.uid), Some(user.gid))
                    .map_err(|errno| failed("give away", folder)(errno.into()))?;
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let about = fs::symlink_metadata(folder).map_err(failed("look at", folder))?;
            let owner = run_as.map_or_else(geteuid, |user| user.uid);
            if about.is_dir() && about.uid() == owner.as_raw() && about.permissions().mode().trailing_zeros() >= 6 {
                Ok(())
            } else {
                Err(EmbeddedError::ForeignFolder(folder.to_owned()))
            }
        }
        Err(error) => Err(failed("create", folder)(error)),
    }
}
