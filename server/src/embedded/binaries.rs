//! Where the installed Postgres is.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// The programs of one Postgres version.
#[derive(Debug)]
pub(super) struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The newest installed version, or exactly `version` (a major version such as `15`) if given.
    pub(super) fn find(version: Option<&str>) -> Result<Self, EmbeddedError> {
        let mut searched = Vec::new();
        let mut found: Vec<(u32, PathBuf)> = Vec::new();
        for (pattern, before, after) in [
            ("/usr/lib/postgresql/*/bin", "/usr/lib/postgresql", "bin"),
            ("/usr/pgsql-*/bin", "/usr", "bin"),
        ] {
            searched.push(pattern.to_owned());
            let entries = std::fs::read_dir(before).into_iter().flatten().flatten();
            found.extend(entries.filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let major = name.strip_prefix("pgsql-").unwrap_or(&name).parse().ok()?;
                Some((major, entry.path().join(after)))
            }));
        }
        searched.push("$PATH".to_owned());
        searched.push("pg_config --bindir".to_owned());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let others = std::env::split_paths(&path).chain(told_by_pg_config());
        found.extend(others.filter(|p| has_both(p)).filter_map(|p| Some((major_of(&p)?, p))));
        found.retain(|(major, folder)| has_both(folder) && version.is_none_or(|v| v == major.to_string()));
        match found.into_iter().max() {
            Some((_, folder)) => Ok(Self { folder }),
            None => Err(EmbeddedError::NoBinaries {
                searched,
                version: version.map(ToOwned::to_owned),
            }),
        }
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }
}

fn has_both(folder: &Path) -> bool {
    folder.join("initdb").is_file() && folder.join("postgres").is_file()
}

fn told_by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// The major version of the `postgres` in `folder`: `postgres (PostgreSQL) 15.14 (Debian …)` is 15.
fn major_of(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let number = text.split_whitespace().nth(2)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = Binaries::find(Some("1")).unwrap_err().to_string();
        assert!(error.contains("of version 1, which wrote the data folder"), "{error}");
        assert!(error.contains("apt install postgresql"), "{error}");
    }

    #[test]
    fn the_installed_version_is_found() {
        let found = Binaries::find(None).unwrap();
        assert!(found.initdb().is_file() && found.postgres().is_file());
        assert!(major_of(&found.folder).unwrap() >= 15);
    }
}
