//! A cell with certificates and users, and a client of frames that can do everything wrong.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use heliostat_client::{Client, ConnectOptions, Credentials};
use heliostat_tls::authority::{Authority, Issued, Validity};
use heliostat_tls::{Channel, config};
use hidb::auth::scram::{ExportedKey, client, server};
use hidb::frame::{Frame, FrameDecoder, FrameKind, encode_frame};
use hidb::{Result, proto};

use crate::cell::{CELL, PATIENCE, TestCell, tool, volume_of};

pub const PASSWORD: &str = "correct horse battery staple";

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

pub fn week() -> Validity {
    Validity::days(now(), 7)
}

pub fn last_week() -> Validity {
    Validity { from_unix_s: now() - 14 * 86_400, to_unix_s: now() - 7 * 86_400 }
}

/// A folder with a volume, an authority and users.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
}

impl Site {
    /// With the administrator `root`, and these users; all have the same password.
    pub fn new(users: &[&[&str]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = volume_of(folder.path());
        let (code, _, err) = tool(&["format", "--volume", volume.to_str().unwrap(), "--size", "256MiB"]);
        assert_eq!(code, 0, "{err}");
        let authority = Authority::open_or_make(&folder.path().join("ca"), now()).unwrap();
        let site = Site { folder, authority };
        site.user_tool(&["add", "root", "--role", "admin", "--password-file", "-"]).unwrap();
        for user in users {
            site.user_tool(&[&["add"], *user, &["--password-file", "-"]].concat()).unwrap();
        }
        site
    }

    /// `heliostat-cell user ...` on the stopped cell, with the password on its standard input.
    pub fn user_tool(&self, arguments: &[&str]) -> std::result::Result<String, String> {
        let volume = volume_of(self.folder.path());
        let mut child = std::process::Command::new(CELL)
            .arg("user")
            .args(arguments)
            .arg("--volume")
            .arg(volume)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{PASSWORD}").unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the cell with a good certificate.
    pub fn start(&self, options: &[&str]) -> TestCell {
        self.start_as(&self.authority.issue_cell(&["127.0.0.1".into()], week()).unwrap(), options)
    }

    /// Starts the cell with this certificate.
    pub fn start_as(&self, issued: &Issued, options: &[&str]) -> TestCell {
        let (certificate, key) = self.authority.keep("cell", issued).unwrap();
        let tls = ["--tls-certificate", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        TestCell::try_start_secure(self.path(), &[&tls, options].concat()).unwrap()
    }

    pub fn ca_path(&self) -> PathBuf {
        self.path().join("ca/ca.crt")
    }

    /// What a user knows.
    pub fn credentials(&self, user: &str, password: &str) -> Credentials {
        Credentials::password(user, password).with_ca(self.authority.certificate())
    }

    /// A client's certificate for this site.
    pub fn certificate(&self, issued: &Issued) -> Credentials {
        Credentials::certificate(&issued.certificate, issued.key.as_str()).with_ca(self.authority.certificate())
    }

    /// A client of the library, over TLS, with the right password.
    pub async fn client(&self, cell: &TestCell, user: &str) -> Client {
        connect(cell, self.credentials(user, PASSWORD)).await.unwrap()
    }

    /// A client of frames, over TLS, that has not said anything yet.
    pub fn wire(&self, cell: &TestCell) -> Raw {
        let mut channel =
            Channel::connect(config::of_client(self.authority.certificate(), None).unwrap(), "127.0.0.1").unwrap();
        let mut raw = Raw::plain(cell.address);
        while channel.is_handshaking() {
            channel.flush(|parts| raw.stream.write_vectored(parts)).unwrap();
            channel.take_in(|target| raw.stream.read(target)).unwrap();
        }
        raw.channel = Some(channel);
        raw
    }

    /// A client of frames, logged in over TLS.
    pub fn session(&self, cell: &TestCell, user: &str) -> Raw {
        let mut raw = self.wire(cell);
        raw.log_in(user, PASSWORD).unwrap();
        raw
    }
}

pub fn options(credentials: Credentials) -> ConnectOptions {
    ConnectOptions { credentials: Some(credentials), ..ConnectOptions::default() }
}

pub async fn connect(cell: &TestCell, credentials: Credentials) -> Result<Client> {
    Client::connect(&format!("hidb://{}", cell.address), options(credentials)).await
}

/// A client of frames over a blocking socket.
pub struct Raw {
    pub stream: TcpStream,
    pub channel: Option<Channel>,
    decoder: FrameDecoder,
    next_id: u64,
}

impl Raw {
    pub fn plain(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, channel: None, decoder: FrameDecoder::new(), next_id: 1 }
    }

    pub fn exported_key(&self) -> Option<ExportedKey> {
        self.channel.as_ref().map(|channel| channel.exported_key().unwrap())
    }

    pub fn write(&mut self, mut bytes: &[u8]) {
        let Some(channel) = &mut self.channel else { return self.stream.write_all(bytes).unwrap() };
        while !bytes.is_empty() {
            let count = channel.write(bytes).unwrap();
            bytes = &bytes[count..];
            channel.flush(|parts| self.stream.write_vectored(parts)).unwrap();
        }
    }

    pub fn send(&mut self, kind: FrameKind, id: u64, body: &impl prost::Message) {
        self.write(&encode_frame(kind, id, body, &[]).unwrap());
    }

    /// The next frame; `None` when the cell has closed the connection.
    pub fn receive(&mut self) -> Option<Frame> {
        loop {
            let read = match &mut self.channel {
                None => self.stream.read(self.decoder.space()),
                Some(channel) => channel.read(self.decoder.space(), |target| self.stream.read(target)),
            };
            match read {
                Ok(0) => return None,
                Ok(count) => {
                    if let Some(frame) = self.decoder.advance(count).unwrap() {
                        return Some(frame);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the cell says nothing"),
                Err(_) => return None,
            }
        }
    }

    pub fn error(&mut self) -> proto::Error {
        let frame = self.receive().expect("an error before the end of the connection");
        assert_eq!(frame.kind, FrameKind::Error);
        frame.message().unwrap()
    }

    /// Says Hello; gives the mechanisms that the cell offers.
    pub fn hello(&mut self) -> Vec<String> {
        self.send(FrameKind::Hello, 0, &hello());
        let frame = self.receive().expect("AuthenticationRequired");
        assert_eq!(frame.kind, FrameKind::AuthenticationRequired, "{:?}", frame.message::<proto::Error>());
        frame.message::<proto::AuthenticationRequired>().unwrap().mechanisms
    }

    /// Logs in as a well-behaved client does.
    pub fn log_in(&mut self, user: &str, password: &str) -> std::result::Result<proto::HelloAck, proto::Error> {
        let key = self.exported_key();
        self.log_in_over(user, password, key.as_ref())
    }

    /// Logs in over the channel that has this key.
    pub fn log_in_over(
        &mut self,
        user: &str,
        password: &str,
        key: Option<&ExportedKey>,
    ) -> std::result::Result<proto::HelloAck, proto::Error> {
        self.hello();
        let nonce = format!("nonce{}", self.stream.local_addr().unwrap().port());
        let begun = client::begin(user, password, server::mechanisms(key.is_some()), key, &nonce).unwrap();
        let first = proto::Authenticate { mechanism: begun.mechanism.into(), data: begun.message.clone().into() };
        self.send(FrameKind::Authenticate, 0, &first);
        let frame = self.receive().expect("a challenge");
        if frame.kind == FrameKind::Error {
            return Err(frame.message().unwrap());
        }
        let challenge: proto::AuthenticateContinue = frame.message().unwrap();
        let responded = begun.respond(&challenge.data).unwrap();
        let last = proto::AuthenticateContinue { data: responded.message.clone().into() };
        self.send(FrameKind::AuthenticateContinue, 0, &last);
        let frame = self.receive().expect("an answer");
        match frame.kind {
            FrameKind::HelloAck => {
                let ack: proto::HelloAck = frame.message().unwrap();
                responded.verify(&ack.authentication_data).unwrap();
                Ok(ack)
            }
            _ => Err(frame.message().unwrap()),
        }
    }

    /// Makes a request; gives the kind of its answer, or the error.
    pub fn ask(&mut self, kind: FrameKind, body: &impl prost::Message) -> std::result::Result<Frame, proto::Error> {
        self.next_id += 1;
        let id = self.next_id;
        self.send(kind, id, body);
        loop {
            let frame = self.receive().expect("an answer before the end of the connection");
            match frame.kind {
                FrameKind::Heartbeat | FrameKind::CacheInvalidationNotice => {}
                FrameKind::Error => return Err(frame.message().unwrap()),
                _ if frame.request_id == id => return Ok(frame),
                _ => {}
            }
        }
    }
}

pub fn hello() -> proto::Hello {
    proto::Hello {
        version_min: 1,
        version_max: 1,
        client_name: "test".into(),
        features: vec!["decimal64".into()],
        ..Default::default()
    }
}
