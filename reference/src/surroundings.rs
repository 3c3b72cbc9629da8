//! Where the cells of the tests run and how clients reach them: what the environment says, so that the very same test
//! binaries run in the soft-RoCE VM, over the kernel's rxe and across network namespaces (`hw/vm/suite`).
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `HELIOSTAT_TRANSPORTS` | `tcp,tls,soft,soft+hmac` | the ways that clients go, see [`transports`] |
//! | `HELIOSTAT_CELL_FABRIC` | `soft:ADDRESS` | `--fabric` of the cells |
//! | `HELIOSTAT_CELL_ADDRESS` | `127.0.0.1` | where cells listen; on any other than loopback `tcp` is TLS, too |
//! | `HELIOSTAT_CELL_CORES` | no limit | cores of a cell at most |
//! | `HELIOSTAT_CELL_COMMAND` | none | words before the cell's command: `ip netns exec peer` |
//! | `HELIOSTAT_CELL_FOLDER` | the build's | where volumes are made; must take O_DIRECT, which tmpfs does not |

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A variable's value in its type; `None` when it is not set.
///
/// # Panics
/// When it does not parse: a test that silently ran elsewhere would prove nothing.
pub fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let value = text.parse().ok();
    assert!(value.is_some(), "{name}={text:?} has no meaning");
    value
}

/// The ways to a cell: `tcp` (plain on loopback), `tls`, or the name of an RDMA device as `heliostat --transport` takes
/// it: `soft`, `rxe0`, `rxe0@fd77::1`; with `+hmac` after it, a MAC over everything (and TLS, where its keys come from).
pub fn transports() -> Vec<String> {
    let text = variable::<String>("HELIOSTAT_TRANSPORTS").unwrap_or_else(|| "tcp,tls,soft,soft+hmac".into());
    text.split(',').map(|way| way.trim().to_string()).collect()
}

/// Whether a way is one over RDMA, so that answers have to come by links.
pub fn is_rdma(way: &str) -> bool {
    !matches!(way, "tcp" | "tls")
}

/// The way over RDMA that tests of links go: the first one of [`transports`].
pub fn rdma_transport() -> String {
    transports().into_iter().find(|way| is_rdma(way)).unwrap_or_else(|| "soft".into())
}

/// Where cells run.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The address they listen on.
    pub address: IpAddr,
    /// Their `--fabric`.
    pub fabric: String,
    /// Cores of a cell at most.
    pub cores_max: usize,
    /// Words before the command, such as those that enter a network namespace; they must execute it in their place, so
    /// that the process is the cell's.
    pub command: Vec<String>,
    /// Where volumes are made; `None`: beside the build's commands.
    pub folder: Option<PathBuf>,
}

impl Surroundings {
    /// On an address.
    pub fn at(address: IpAddr) -> Self {
        Surroundings {
            address,
            fabric: format!("soft:{address}"),
            cores_max: usize::MAX,
            command: Vec::new(),
            folder: variable("HELIOSTAT_CELL_FOLDER"),
        }
    }

    /// As the environment says.
    pub fn of_environment() -> Self {
        let usual = Self::at(variable("HELIOSTAT_CELL_ADDRESS").unwrap_or([127, 0, 0, 1].into()));
        let command = variable::<String>("HELIOSTAT_CELL_COMMAND").unwrap_or_default();
        Surroundings {
            fabric: variable("HELIOSTAT_CELL_FABRIC").unwrap_or(usual.fabric),
            cores_max: variable("HELIOSTAT_CELL_CORES").unwrap_or(usual.cores_max),
            command: command.split_whitespace().map(String::from).collect(),
            ..usual
        }
    }
}
