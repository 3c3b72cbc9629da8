//! `verbs-check` in two processes: every operation, every size, both directions.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_verbs-check");

/// Ends the process when a test fails half way.
struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command, in a network namespace if one is named.
fn command(namespace: Option<&str>) -> Command {
    match namespace {
        None => Command::new(PROGRAM),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace, PROGRAM]);
            command
        }
    }
}

/// Runs both sides; each is a namespace and a device.
fn check(listening: (Option<&str>, &str), connecting: (Option<&str>, &str), control: &str, more: &[&str]) {
    let mut listener = command(listening.0);
    listener.args(["--device", listening.1, "--listen", &format!("{control}:0")]).stdout(Stdio::piped());
    let mut listener = Listening(listener.spawn().unwrap());
    let mut first = String::new();
    let mut lines = BufReader::new(listener.0.stdout.take().unwrap());
    lines.read_line(&mut first).unwrap();
    let address = first.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{first:?}"));
    let output =
        command(connecting.0).args(["--device", connecting.1, "--connect", address]).args(more).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().filter(|line| line.ends_with(" ok")).count() >= 40, "{text}");
    assert!(listener.0.wait().unwrap().success());
}

#[test]
fn every_operation_on_loopback_ipv4() {
    check((None, "soft:127.0.0.1"), (None, "soft:127.0.0.1"), "127.0.0.1", &[]);
}

#[test]
fn every_operation_on_loopback_ipv6_with_small_packets() {
    check((None, "soft:::1"), (None, "soft:::1"), "127.0.0.1", &["--mtu", "256", "--size-max", "65536"]);
}

/// Two namespaces joined by veth, removed with the value.
struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    /// `None` where this process may not make them.
    fn new() -> Option<Self> {
        let id = std::process::id() % 100_000;
        let names = [format!("vs{id}a"), format!("vs{id}b")];
        let namespaces = Namespaces { names };
        let [a, b] = &namespaces.names;
        if !ip(&["netns", "add", a]) {
            return None;
        }
        let commands = [
            format!("netns add {b}"),
            format!("-n {a} link add veth0 mtu 9000 type veth peer name veth1 mtu 9000 netns {b}"),
            format!("-n {a} address add 10.79.0.1/24 dev veth0"),
            format!("-n {b} address add 10.79.0.2/24 dev veth1"),
            format!("-n {a} address add fd79::1/64 dev veth0 nodad"),
            format!("-n {b} address add fd79::2/64 dev veth1 nodad"),
            format!("-n {a} link set veth0 up"),
            format!("-n {b} link set veth1 up"),
        ];
        for command in commands {
            assert!(ip(&command.split(' ').collect::<Vec<_>>()), "ip {command}");
        }
        Some(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn every_operation_between_two_network_namespaces() {
    let Some(namespaces) = Namespaces::new() else {
        eprintln!("SKIPPED: network namespaces need root and iproute2");
        assert!(std::env::var_os("CI").is_none(), "CI runs as root, with iproute2");
        return;
    };
    let [a, b] = &namespaces.names;
    check((Some(a), "soft:veth0"), (Some(b), "soft:veth1"), "10.79.0.1", &[]);
    check((Some(a), "soft:fd79::1"), (Some(b), "soft:fd79::2"), "10.79.0.1", &["--size-max", "65536"]);
    // The port of RoCEv2: raw sockets over IPv4, a plain one over IPv6.
    for (there, here) in [("soft:10.79.0.1", "soft:10.79.0.2"), ("soft:fd79::1", "soft:fd79::2")] {
        let mut listener = command(Some(a));
        listener.args(["--device", there, "--udp-port", "4791", "--listen", "10.79.0.1:0"]).stdout(Stdio::piped());
        let mut listener = Listening(listener.spawn().unwrap());
        let mut first = String::new();
        BufReader::new(listener.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{first:?}")).to_string();
        let more = ["--udp-port", "4791", "--size-max", "65536", "--connect", &address];
        let output = command(Some(b)).args(["--device", here]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        // Its output is not read to the end: whether it wrote into a closed pipe does not matter here.
        let _ = listener.0.wait();
    }
}
