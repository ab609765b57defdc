//! Names of namespaces: unique per lab, and telling which process they belong to.
//!
//! The name is the only thing that outlives a killed test, so it carries the process id: that is how the next lab knows
//! what it may sweep away and what belongs to a test that is still running next to it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::MOUNTS;

/// What every namespace of ours begins with.
const FAMILY: &str = "nf";

static LABS: AtomicU32 = AtomicU32::new(0);

/// The first part of the names of one lab's namespaces: `nf<process id in base 36>-<number of the lab>`.
#[derive(Clone, Debug)]
pub struct Prefix(String);

impl Prefix {
    /// A prefix that no other lab of this or of another living process has.
    pub fn unique() -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self(format!("{FAMILY}{}-{number}", base36(std::process::id())))
    }

    /// The whole name of the namespace with this role in the lab.
    pub fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.0)
    }
}

/// Deletes, once per process, the namespaces of processes that no longer live.
pub(super) fn delete_leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(sweep);
}

fn sweep() {
    let Ok(entries) = std::fs::read_dir(MOUNTS) else {
        // No such folder yet: nobody has ever named a namespace here.
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead = owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead {
            // Another test process may be sweeping at the same moment: one of us finds it gone, which is fine.
            let _ = Command::new("ip")
                .args(["netns", "delete", &name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The process id in one of our names; `None` for a name that is not ours.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(FAMILY)?.splitn(3, '-');
    let (pid, lab, _role) = (parts.next()?, parts.next()?, parts.next()?);
    lab.parse::<u32>().ok()?;
    u32::from_str_radix(pid, 36).ok()
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).expect("a digit below 36"));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_process() {
        assert_eq!(owner(&Prefix::unique().namespace("node-1")), Some(std::process::id()));
        assert_eq!(owner("nfs-server"), None);
        assert_eq!(owner("nf12"), None);
        assert_eq!(owner("cni-1-2"), None);
    }

    #[test]
    fn only_namespaces_of_dead_processes_are_swept() {
        // Above the largest process id that Linux gives out.
        let dead = format!("{FAMILY}{}-0-node-1", base36(4_194_305));
        let foreign = format!("keep-{dead}");
        for name in [&dead, &foreign] {
            assert!(
                Command::new("ip")
                    .args(["netns", "add", name])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let alive = crate::netns::Netns::create(&Prefix::unique(), "alive");
        sweep();
        let exists = |name: &str| Path::new(MOUNTS).join(name).exists();
        assert_eq!(
            (exists(&dead), exists(&foreign), exists(alive.name())),
            (false, true, true)
        );
        assert!(
            Command::new("ip")
                .args(["netns", "delete", &foreign])
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn base36_is_read_back() {
        for number in [0, 35, 36, 4_194_304, u32::MAX] {
            assert_eq!(u32::from_str_radix(&base36(number), 36), Ok(number));
        }
    }
}
