//! Two hosts on one machine: the test in a network namespace, its cell in another, a pair of virtual interfaces between
//! them that can be cut.
//!
//! Owns [`in_a_network`] and [`Network`]. The namespaces are those of processes and end with them. Nothing of the
//! machine's own network is touched; without the right to make a namespace, as root or by user namespaces, a test is
//! skipped, and fails where `CI` is set.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use heliostat_reference::surroundings::Surroundings;

/// Set for a test that has its namespace.
const INSIDE: &str = "HELIOSTAT_TEST_NETWORK";
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);

/// Runs a test, which must be the one of this name, in a network.
pub fn in_a_network<F: Future<Output = Result<()>>>(test: &str, run: impl FnOnce(Network) -> F) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        return runtime.block_on(run(Network::make()));
    }
    // As root without a user namespace, in which less memory could be locked.
    let ways: [&[&str]; 2] = [&["--net"], &["--net", "--map-root-user"]];
    let may = |way: &&&[&str]| {
        let tried = Command::new("unshare").args(**way).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let Some(way) = ways.iter().find(may) else {
        let ci = std::env::var_os("CI").is_some();
        assert!(!ci, "no network namespace can be made here: see `unshare --net true`");
        eprintln!("SKIPPED: no network namespace can be made here, see `unshare --net true`");
        return Ok(());
    };
    let mut again = Command::new("unshare");
    again.args(*way).arg(std::env::current_exe()?).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    // Whatever happens, it ends with this process.
    again.env("RUST_BACKTRACE", "0");
    let output = again.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{test} failed in its network");
    Ok(())
}

/// How a network is cut.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// The interface is down: sending is an error.
    LinkDown,
    /// All packets get lost, both ways, and nobody is told.
    Silence,
}

/// The two namespaces.
pub struct Network {
    /// Holds the cell's namespace.
    holder: Child,
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Network {
    fn make() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().expect("unshare runs");
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).expect("it runs");
        let until = Instant::now() + Duration::from_secs(10);
        while namespace(&holder.id().to_string()) == namespace("self") {
            assert!(Instant::now() < until, "unshare makes no namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        let network = Network { holder };
        let process = network.holder.id();
        ip("link set lo up");
        ip(&format!("link add near mtu 9000 type veth peer name far mtu 9000 netns {process}"));
        ip("link set near up");
        ip(&format!("address add {NEAR}/24 dev near"));
        network.far("link set lo up");
        network.far("link set far up");
        network.far(&format!("address add {FAR}/24 dev far"));
        network
    }

    /// The command that runs another on the far side.
    fn entering(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.holder.id())]
    }

    fn far(&self, arguments: &str) {
        let entering = self.entering();
        run(Command::new(&entering[0]).arg(&entering[1]).arg("ip").args(arguments.split(' ')));
    }

    /// Of a cell on the far side.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings { command: self.entering(), ..Surroundings::at(IpAddr::V4(FAR)) }
    }

    /// Cuts it.
    pub fn cut(&self, cut: Cut) {
        match cut {
            Cut::LinkDown => ip("link set near down"),
            // Frames to an address that is not the other's are dropped there.
            Cut::Silence => {
                ip(&format!("neighbour replace {FAR} lladdr 02:00:00:00:00:77 dev near nud permanent"));
                self.far(&format!("neighbour replace {NEAR} lladdr 02:00:00:00:00:77 dev far nud permanent"));
            }
        }
    }

    /// Makes it whole again.
    pub fn heal(&self, cut: Cut) {
        match cut {
            Cut::LinkDown => ip("link set near up"),
            Cut::Silence => {
                ip(&format!("neighbour delete {FAR} dev near"));
                self.far(&format!("neighbour delete {NEAR} dev far"));
            }
        }
    }
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
