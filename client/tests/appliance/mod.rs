//! A `heliostat dev` on a volume of its own, and the command line that talks to it.
#![allow(dead_code)] // each test uses a part

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const HELIOSTAT: &str = env!("CARGO_BIN_EXE_heliostat");

/// A `heliostat dev` whose default profile is in its data folder, and the commands that find it there.
pub struct Dev {
    pub child: Child,
    pub url: String,
    pub config: PathBuf,
}

impl Dev {
    pub fn start(data: &Path) -> Self {
        let cell = Path::new(HELIOSTAT).with_file_name("heliostat-cell");
        assert!(cell.exists(), "{cell:?} is not built: cargo build --release --workspace --bins");
        let mut child = Command::new(HELIOSTAT)
            .args(["dev", "--port", "0", "--size", "1GiB", "--cache", "64MiB", "--cores", "2", "--data"])
            .arg(data)
            .env("XDG_CONFIG_HOME", data.join("config"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.split("ready at ").nth(1).and_then(|rest| rest.split(';').next()).unwrap().to_string();
        // The greeting goes on; a closed pipe would end `dev`.
        std::thread::spawn(move || lines.for_each(drop));
        Dev { child, url, config: data.join("config") }
    }

    /// Exit code, standard output, standard error: nothing says where the appliance is, or who is asking.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        run_in(&self.config, arguments)
    }

    pub fn done(&self, arguments: &[&str]) -> (String, String) {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {err}");
        (out, err)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

pub fn run(arguments: &[&str]) -> (i32, String, String) {
    run_in(Path::new("/nonexistent"), arguments)
}

pub fn run_in(config: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(HELIOSTAT);
    command.env("XDG_CONFIG_HOME", config).env_remove("HELIOSTAT_CONNECT").env_remove("HELIOSTAT_CREDENTIALS");
    let output = command.args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}
