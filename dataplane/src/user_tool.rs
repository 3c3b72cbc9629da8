//! `heliostat-cell user`: the users of a cell that is not running. The first administrator is made with it.
//!
//! Called by `main`.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use futures_lite::future::block_on;
use hidb::auth::scram::{ITERATIONS_DEFAULT, SALT_BYTES, Verifier};
use hidb::auth::{Permission, Role};
use hidb::{Error, ErrorCode, Result, proto};
use zeroize::Zeroizing;

use crate::config::Where;
use crate::device::file::FileDevice;
use crate::store::users::{UserChange, Users, change_stopped};

/// What can be done.
#[derive(Subcommand)]
pub enum UserCommand {
    /// Makes a user.
    Add {
        #[allow(missing_docs, reason = "clap would show it in place of its options")]
        #[command(flatten)]
        place: Where,
        /// The user's name.
        name: String,
        /// reader, writer or admin.
        #[arg(long)]
        role: Role,
        /// File whose first line is the password (mode 0600); -: standard input.
        #[arg(long, value_name = "FILE", required_unless_present = "certificate")]
        password_file: Option<PathBuf>,
        /// The user has no password, but a client certificate with this name (`heliostat-cell tls client`).
        #[arg(long, conflicts_with = "password_file")]
        certificate: bool,
        /// A table the user may read; *: every table. May be repeated.
        #[arg(long, value_name = "TABLE")]
        read: Vec<String>,
        /// A table the user may read, make and load into; *: every table. May be repeated.
        #[arg(long, value_name = "TABLE")]
        write: Vec<String>,
        /// Gives a user that is there this role and password.
        #[arg(long, conflicts_with = "certificate")]
        replace: bool,
    },
    /// Gives a user another role or password.
    Set {
        #[allow(missing_docs, reason = "clap would show it in place of its options")]
        #[command(flatten)]
        place: Where,
        /// The user's name.
        name: String,
        /// reader, writer or admin.
        #[arg(long)]
        role: Option<Role>,
        /// File whose first line is the password (mode 0600); -: standard input.
        #[arg(long, value_name = "FILE", required_unless_present = "role")]
        password_file: Option<PathBuf>,
    },
    /// Removes a user.
    Rm {
        #[allow(missing_docs, reason = "clap would show it in place of its options")]
        #[command(flatten)]
        place: Where,
        /// The user's name.
        name: String,
    },
    /// Lists the users.
    Ls {
        #[allow(missing_docs, reason = "clap would show it in place of its options")]
        #[command(flatten)]
        place: Where,
    },
}

/// The password in a file's first line, as what is kept of it.
fn verifier(password_file: Option<&Path>) -> Result<Option<proto::ScramVerifier>> {
    let Some(path) = password_file else { return Ok(None) };
    let password = if path == Path::new("-") {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin()
            .lock()
            .read_line(&mut line)
            .map_err(|error| Error::new(ErrorCode::Io, format!("reading the password failed: {error}")))?;
        let length = line.trim_end_matches(['\n', '\r']).len();
        line.truncate(length);
        line
    } else {
        heliostat_tls::config::first_line(path)?
    };
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
    Ok(Some(Verifier::of_password(&password, &salt, ITERATIONS_DEFAULT)?.to_proto()))
}

fn grants(read: Vec<String>, write: Vec<String>) -> Vec<proto::TableGrant> {
    let grant =
        |permission: Permission| move |table| proto::TableGrant { table, permission: permission.to_proto() as i32 };
    read.into_iter().map(grant(Permission::Read)).chain(write.into_iter().map(grant(Permission::Write))).collect()
}

/// Runs the command.
///
/// # Errors
/// `VolumeInUse` while the cell runs (`heliostat user` asks a running one), and what is wrong with the change.
pub fn run(command: UserCommand) -> Result<()> {
    match command {
        UserCommand::Add { place, name, role, password_file, certificate: _, read, write, replace } => {
            let verifier = verifier(password_file.as_deref())?;
            let role = role.to_proto() as i32;
            let said = format!("user {name}");
            change(place, move |users| {
                Ok(vec![if replace && users.get(&name).is_some() {
                    UserChange::Alter(proto::AlterUser { name, role, verifier })
                } else {
                    UserChange::add(proto::AddUser { name, role, verifier, grants: grants(read, write) })?
                }])
            })?;
            say(&said)
        }
        UserCommand::Set { place, name, role, password_file } => {
            let role = role.map_or(proto::Role::Unspecified, Role::to_proto) as i32;
            let verifier = verifier(password_file.as_deref())?;
            let said = format!("changed user {name}");
            change(place, |_| Ok(vec![UserChange::Alter(proto::AlterUser { name, role, verifier })]))?;
            say(&said)
        }
        UserCommand::Rm { place, name } => {
            let said = format!("removed user {name}");
            change(place, |_| Ok(vec![UserChange::Remove(name)]))?;
            say(&said)
        }
        UserCommand::Ls { place } => {
            for user in change(place, |_| Ok(Vec::new()))?.iter() {
                say(&format!("{} {}", user.name, user.role))?;
            }
            Ok(())
        }
    }
}

fn change(place: Where, decide: impl FnOnce(&Users) -> Result<Vec<UserChange>>) -> Result<Users> {
    let config = place.config();
    if !config.volume.exists() {
        let path = config.volume.display();
        let message = format!("there is no volume {path}: make one with `heliostat-cell format --volume {path}`");
        return Err(Error::new(ErrorCode::NotFormatted, message));
    }
    let device = FileDevice::open(&config.volume)?;
    Ok(block_on(change_stopped(&device, &config.metadata_folder(), decide))?)
}

fn say(line: &str) -> Result<()> {
    // Whoever closed standard output does not want to know.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
    Ok(())
}
