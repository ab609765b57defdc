//! A file system of its own for a folder, so small that it can be filled up.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Its size: enough for what an agent keeps in a lab.
const SIZE: &str = "size=8m,mode=0700";

/// What fills it up.
const FILLER: &str = "filler";

/// A mounted tmpfs. It goes on drop; processes that are in it keep it for themselves until they end.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes the folder, if it is not there, and mounts the file system on it. Programs that were started in a network namespace
    /// before do not see it.
    pub fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("{} can't be made: {error}", path.display()));
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(SIZE))
            .unwrap_or_else(|error| panic!("a file system can't be mounted on {}: {error}", path.display()));
        Self { path: path.to_owned() }
    }

    /// Takes all room that is left. Files can be made, but nothing can be written into them.
    pub fn fill(&self) {
        let mut filler = File::create(self.path.join(FILLER)).expect("a file can be made");
        // Whole blocks first, then every byte of what is left.
        for size in [64 * 1024, 1] {
            let block = vec![0; size];
            let full = loop {
                if let Err(error) = filler.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
    }

    /// Makes it a large one, for a node with many rules.
    pub fn grow(&self) {
        let options = Some("size=2g,mode=0700");
        mount(None::<&str>, &self.path, None::<&str>, MsFlags::MS_REMOUNT, options)
            .unwrap_or_else(|error| panic!("{} does not grow: {error}", self.path.display()));
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.path.join(FILLER)).expect("a disk that was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It may be in use by a process that is about to end.
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        let folder = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(&folder.path().join("state"));
        let file = folder.path().join("state/ledger.json");
        fs::write(&file, "{}").unwrap();
        disk.fill();
        let refused = fs::write(folder.path().join("state/other"), "{}").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        disk.free();
        fs::write(&file, "{\"position\":\"idle\"}").unwrap();
        drop(disk);
        assert!(!file.exists(), "it was on the disk");
    }
}
