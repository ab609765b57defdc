//! A namespace as a node: its files and commands are those that a program started in it would see.

use std::io::{self, ErrorKind};
use std::path::Path;

use nftfleet_agent::facts::collect::proxy_evidence;
use nftfleet_agent::host::{Host, Ran};
use nftfleet_domain::inventory::ProxyEvidence;
use nftfleet_tests::netns::Netns;

/// The files below `/sys` and `/proc` belong to a process, so a thread in the namespace would see those of this program.
pub struct InNetns<'a>(pub &'a Netns);

impl InNetns<'_> {
    /// What the agent finds, with kube-proxy's own word from where it is by default.
    pub fn evidence(&self) -> ProxyEvidence {
        self.0
            .run(|| proxy_evidence(self, "127.0.0.1:10249".parse().expect("an address")))
    }
}

impl Host for InNetns<'_> {
    fn read(&self, path: &Path) -> io::Result<String> {
        let ran = self.run("cat", &[&path.to_string_lossy()], "")?;
        let missing = ran.stderr.contains("No such file");
        match ran.succeeded {
            true => Ok(ran.stdout),
            false if missing => Err(ErrorKind::NotFound.into()),
            false => Err(io::Error::other(ran.stderr)),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let ran = self.run("ls", &[&folder.to_string_lossy()], "")?;
        Ok(ran.stdout.lines().map(str::to_owned).collect())
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<Ran> {
        assert!(input.is_empty(), "detection changes nothing");
        let output = self.0.command(program).args(arguments).output()?;
        Ok(Ran {
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
