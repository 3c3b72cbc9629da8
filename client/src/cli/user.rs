//! `heliostat user add|ls|set|rm|grant|revoke`.

use std::io::{BufRead as _, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use heliostat_client::{Client, Credentials};
use heliostat_tls::config::first_line;
use hidb::auth::{Permission, Role, scram};
use hidb::proto::UserSummary;
use hidb::{Error, ErrorCode};
use zeroize::Zeroizing;

use super::text::TextTable;
use super::{Failure, Global, ListFormat};

#[derive(Subcommand)]
pub enum Command {
    /// Make a user.
    Add {
        /// The user's name.
        name: String,
        /// What the user is, and the most that grants can give: a reader reads tables; a writer also makes and loads
        /// them; an admin may everything and needs no grants.
        #[arg(long, value_name = "reader|writer|admin")]
        role: Role,
        /// File whose first line is the password (mode 0600); -: standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Make up a password and write a profile for the user: address, authority, user, password.
        #[arg(long, value_name = "FILE", conflicts_with = "password_file")]
        profile: Option<PathBuf>,
        /// The user has no password, but a client certificate with this name (`heliostat-cell tls client`).
        #[arg(long, conflicts_with_all = ["password_file", "profile"])]
        certificate: bool,
        /// A table the user may read; *: every table. May be repeated.
        #[arg(long, value_name = "TABLE")]
        read: Vec<String>,
        /// A table the user may read, make and load into; *: every table. May be repeated.
        #[arg(long, value_name = "TABLE")]
        write: Vec<String>,
    },
    /// List the users and their grants.
    Ls {
        /// How the list is printed.
        #[arg(long, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
    },
    /// Give a user another role or password.
    Set {
        /// The user's name.
        name: String,
        /// The new role.
        #[arg(long, value_name = "reader|writer|admin")]
        role: Option<Role>,
        /// File whose first line is the new password (mode 0600); -: standard input.
        #[arg(long, value_name = "FILE", required_unless_present = "role")]
        password_file: Option<PathBuf>,
    },
    /// Remove users. Their connections can do nothing more.
    Rm {
        /// The users.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Let a user read or write a table, in place of an earlier grant on it.
    Grant {
        /// The user's name.
        name: String,
        /// The table's name, whether there is such a table already or not; *: every table.
        table: String,
        /// read, or write, which includes read.
        #[arg(value_name = "read|write")]
        permission: Permission,
    },
    /// Take a grant back.
    Revoke {
        /// The user's name.
        name: String,
        /// The table's name as it was granted.
        table: String,
    },
}

fn password(file: &Path) -> Result<Zeroizing<String>, Error> {
    if file != Path::new("-") {
        return first_line(file);
    }
    let mut line = Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Error::new(ErrorCode::Io, format!("reading the password failed: {error}")))?;
    let length = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(length);
    Ok(line)
}

/// A password that nobody has to remember.
pub fn made_up_password() -> Result<Zeroizing<String>, Error> {
    let mut random = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *random)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("the kernel gives no random numbers: {error}")))?;
    Ok(Zeroizing::new(scram::message::encode(&*random)))
}

pub async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match command {
        Command::Add { name, role, password_file, profile, certificate, read, write } => {
            let given = match (&password_file, &profile, certificate) {
                (Some(file), ..) => Some(password(file)?),
                (None, Some(_), _) => Some(made_up_password()?),
                (None, None, true) => None,
                (None, None, false) => {
                    return Err(Failure::Usage(
                        "how will the user log in? give --password-file FILE, --profile FILE or --certificate".into(),
                    ));
                }
            };
            let read = read.into_iter().map(|table| (table, Permission::Read));
            let grants: Vec<_> = read.chain(write.into_iter().map(|table| (table, Permission::Write))).collect();
            let client = global.connect(global.options()).await?;
            client.add_user(&name, role, given.as_ref().map(|given| given.as_str()), &grants).await?;
            if let (Some(path), Some(given)) = (profile, given) {
                write_profile(&client, &name, &given, &path)?;
                writeln!(output, "added {name}, {role}; the profile is {}", path.display())?;
            } else {
                writeln!(output, "added {name}, {role}")?;
            }
            if grants.is_empty() && role != Role::Admin {
                writeln!(output, "{name} may not see any table yet: heliostat user grant {name} TABLE read")?;
            }
        }
        Command::Ls { format } => {
            let client = global.connect(global.options()).await?;
            list(&mut output, &client.users().await?, format)?;
        }
        Command::Set { name, role, password_file } => {
            let given = password_file.as_deref().map(password).transpose()?;
            let client = global.connect(global.options()).await?;
            client.alter_user(&name, role, given.as_ref().map(|given| given.as_str())).await?;
            writeln!(output, "changed {name}")?;
        }
        Command::Rm { names } => {
            let client = global.connect(global.options()).await?;
            for name in names {
                client.remove_user(&name).await?;
                writeln!(output, "removed {name}")?;
            }
        }
        Command::Grant { name, table, permission } => {
            let client = global.connect(global.options()).await?;
            client.grant(&name, &table, Some(permission)).await?;
            writeln!(output, "{name} may {permission} {table}")?;
        }
        Command::Revoke { name, table } => {
            let client = global.connect(global.options()).await?;
            client.grant(&name, &table, None).await?;
            writeln!(output, "{name} has no grant on {table} any more")?;
        }
    }
    Ok(())
}

/// A profile like the one of this client, for another user.
fn write_profile(client: &Client, name: &str, password: &str, path: &Path) -> Result<(), Error> {
    let mut credentials = Credentials::password(name, password).with_address(client.address().clone());
    if let Some(ca) = client.options().credentials.as_ref().and_then(Credentials::ca_certificate) {
        credentials = credentials.with_ca(ca);
    }
    credentials.write(path).map_err(|error| {
        Error::new(error.code, format!("{}: {name} was added; set another password with `user set`", error.message))
    })
}

fn list(output: &mut dyn Write, users: &[UserSummary], format: ListFormat) -> Result<(), Failure> {
    let role = |user: &UserSummary| Role::from_proto(user.role).map_or("?", Role::name);
    let permission = |number| Permission::from_proto(number).map_or("?", Permission::name);
    if format == ListFormat::Json {
        for user in users {
            let grants = user.grants.iter();
            let grants = grants.map(|grant| (grant.table.clone(), permission(grant.permission).into()));
            let line = serde_json::json!({
                "name": user.name,
                "role": role(user),
                "has_password": user.has_password,
                "grants": grants.collect::<serde_json::Map<_, _>>(),
            });
            writeln!(output, "{line}")?;
        }
        return Ok(());
    }
    let columns = ["name", "role", "logs in with", "grants"];
    let mut table = TextTable::new(columns.map(|name| (name.to_string(), false)));
    for user in users {
        let grants: Vec<String> =
            user.grants.iter().map(|grant| format!("{} {}", permission(grant.permission), grant.table)).collect();
        let grants = if role(user) == Role::Admin.name() { "everything".into() } else { grants.join(", ") };
        let how = if user.has_password { "password" } else { "certificate" };
        table.push([user.name.clone(), role(user).into(), how.into(), grants]);
    }
    table.write(output)?;
    Ok(())
}
