//! Network namespaces: the machines of a lab.
//!
//! A namespace belongs to a thread, not to a process: whatever is to happen inside one runs on a thread that has
//! entered it, and sockets stay in the namespace in which they were made.

mod name;
mod runtime_thread;

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

pub use name::Prefix;
pub(crate) use runtime_thread::{RuntimeThread, Stopped};

/// Where `ip netns` mounts the namespaces that it names.
const MOUNTS: &str = "/run/netns";

/// A named network namespace, made by us and deleted when its last clone goes.
#[derive(Clone, Debug)]
pub struct Netns {
    owned: Arc<Owned>,
}

#[derive(Debug)]
struct Owned {
    name: String,
}

impl Netns {
    /// Makes the namespace `PREFIX-role`, for example `nf1ab-0-node-1`, with its loopback up.
    pub fn create(prefix: &Prefix, role: &str) -> Self {
        let mut made = Self::create_all(prefix, &[role.to_owned()]);
        made.pop().expect("one namespace per role")
    }

    /// Makes one namespace per role in one go, since starting `ip` costs more than its work.
    pub fn create_all(prefix: &Prefix, roles: &[String]) -> Vec<Self> {
        name::delete_leftovers();
        let names: Vec<String> = roles.iter().map(|role| prefix.namespace(role)).collect();
        let script = names
            .iter()
            .fold(String::new(), |script, name| script + "netns add " + name + "\n");
        feed(Command::new("ip").args(["-batch", "-"]), &script);
        let made: Vec<Self> = names
            .into_iter()
            .map(|name| Self {
                owned: Arc::new(Owned { name }),
            })
            .collect();
        for netns in &made {
            netns.run(set_sysctls);
            netns.batch("link set lo up");
        }
        made
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.owned.name
    }

    /// Moves the current thread, and no other, into this namespace for good. Threads that it starts are born here.
    pub fn enter(&self) {
        let path = format!("{MOUNTS}/{}", self.name());
        let file = File::open(&path).unwrap_or_else(|error| panic!("namespace {path} cannot be opened: {error}"));
        setns(file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("namespace {path} cannot be entered: {error}"));
    }

    /// Runs `work` on a fresh thread inside this namespace and waits for what it returns. A panic goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `work` on a thread of its own inside this namespace, which lives on at least as long as that thread.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.clone();
        std::thread::Builder::new()
            .name(netns.name().to_owned())
            .spawn(move || {
                netns.enter();
                work()
            })
            .expect("a thread for a namespace")
    }

    /// A command that will run inside this namespace (through `ip netns exec`).
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), program]);
        command
    }

    /// Runs `ip` commands, one a line and without the word `ip`, inside this namespace. Panics at the first refusal.
    pub fn batch(&self, script: &str) {
        feed(Command::new("ip").args(["-n", self.name(), "-batch", "-"]), script);
    }

    /// Runs `program` inside this namespace with `input` on its standard input and returns its standard output.
    /// Panics with what it printed on standard error when it fails.
    pub fn pipe(&self, program: &str, arguments: &[&str], input: &str) -> String {
        feed(self.command(program).args(arguments), input)
    }

    /// Sets a kernel parameter of this namespace, named by its path below `net`, for example `ipv4/ip_forward`.
    pub fn sysctl(&self, parameter: &str, value: &str) {
        self.run(|| set_sysctl(parameter, value));
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // A namespace that is gone already, or an `ip` that fails while a test panics, must not hide the test's own
        // message: the next lab cleans up after a dead process anyway.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .stderr(Stdio::null())
            .status();
    }
}

/// What every machine of a lab wants: addresses usable at once, and no opinion of the kernel about odd paths.
fn set_sysctls() {
    for scope in ["all", "default"] {
        set_sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0");
        set_sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0");
        set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
        set_sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0");
        set_sysctl(&format!("ipv4/conf/{scope}/accept_redirects"), "0");
    }
}

/// Writes one parameter of the current thread's namespace.
fn set_sysctl(parameter: &str, value: &str) {
    let path = format!("/proc/sys/net/{parameter}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path} cannot be set to {value}: {error}"));
}

/// Runs a command to its end with `input` on standard input; its standard output, or a panic with its standard error.
fn feed(command: &mut Command, input: &str) -> String {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown} does not start: {error}"));
    let mut stdin = child.stdin.take().expect("a piped standard input");
    let output = std::thread::scope(|scope| {
        // On a thread of its own: a program that answers before it has read everything would block us both.
        scope.spawn(move || {
            // A program that ends early closes the pipe; its exit status says more than the broken pipe.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output()
    })
    .unwrap_or_else(|error| panic!("{shown} cannot be waited for: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{shown} failed with {}: {complaint}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_namespace_is_a_world_of_its_own_and_goes_with_its_last_owner() {
        let netns = Netns::create(&Prefix::unique(), "alone");
        let path = format!("{MOUNTS}/{}", netns.name());
        let (inside, address) = netns.run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            TcpStream::connect(address).unwrap();
            (listener, address)
        });
        assert!(
            TcpStream::connect(address).is_err(),
            "the listener must not be seen from outside"
        );
        drop(inside);

        let second = netns.clone();
        drop(netns);
        assert!(std::fs::exists(&path).unwrap());
        drop(second);
        assert!(!std::fs::exists(&path).unwrap());
    }

    #[test]
    fn a_command_runs_inside() {
        let netns = Netns::create(&Prefix::unique(), "alone");
        netns.batch("link add ring type bridge");
        assert!(netns.pipe("ip", &["-br", "link"], "").contains("ring"));
    }

    #[test]
    #[should_panic(expected = "Cannot find device")]
    fn a_refused_batch_says_why() {
        Netns::create(&Prefix::unique(), "alone").batch("link set nowhere up");
    }
}
