//! Connecting: the endpoint record that two sides exchange over any byte stream, and what they agree on.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::Error;
use crate::soft::engine::ControlError;
use crate::verbs::{Access, MemoryKey, Mtu, QueuePairNumber};

/// The UDP port of RoCEv2.
pub const ROCE_PORT: u16 = 4791;

const MAGIC: [u8; 4] = *b"VSE1";
/// Bytes of an encoded [`Endpoint`].
pub const ENDPOINT_BYTES: usize = 72;

/// What a peer must know of a queue pair to connect to it. [`Self::to_bytes`] has a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The queue pair.
    pub queue_pair: QueuePairNumber,
    /// The first PSN that it sends, 24 bits.
    pub psn: u32,
    /// Its address; IPv4 mapped into IPv6.
    pub gid: Ipv6Addr,
    /// Its local identifier, on InfiniBand proper; else 0.
    pub lid: u16,
    /// The largest path MTU it can take; the smaller of both sides is used.
    pub mtu: Mtu,
    /// READs and atomics that it answers at a time.
    pub responder_depth: u8,
    /// What only a soft endpoint has.
    pub soft: Option<SoftEndpoint>,
    /// Memory that the peer may use, if there is some to tell of at once.
    pub memory: Option<RemoteMemory>,
}

/// What a soft endpoint tells beyond the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftEndpoint {
    /// UDP port; the address is the GID.
    pub port: u16,
    /// Bytes of requests that the peer may have in flight, so that the socket's buffer never overflows.
    pub window_bytes: u64,
    /// What each packet counts against it beyond its payload and headers.
    pub packet_overhead_bytes: u32,
    /// Whether its IPv4 headers are those of a plain socket (identification 0); false for a raw socket. The invariant CRC
    /// covers them.
    pub plain_socket: bool,
}

/// Memory of the peer: where WRITE, READ and atomics go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMemory {
    /// Address of the first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// The key.
    pub key: MemoryKey,
}

impl RemoteMemory {
    /// The part from `offset` on, `length` bytes; `None` if it is not inside.
    pub fn part(&self, offset: u64, length: u64) -> Option<RemoteMemory> {
        (offset.checked_add(length)? <= self.length).then(|| RemoteMemory {
            address: self.address + offset,
            length,
            key: self.key,
        })
    }
}

impl Endpoint {
    /// Its IP address, for RoCE.
    pub fn ip(&self) -> IpAddr {
        self.gid.to_ipv4_mapped().map_or(IpAddr::V6(self.gid), IpAddr::V4)
    }

    /// Where its packets arrive.
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.soft.map_or(ROCE_PORT, |soft| soft.port))
    }

    /// The record as it is exchanged: magic, then little-endian fields at fixed places.
    pub fn to_bytes(&self) -> [u8; ENDPOINT_BYTES] {
        let mut out = [0; ENDPOINT_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&self.queue_pair.0.to_le_bytes());
        put(&self.psn.to_le_bytes());
        put(&self.gid.octets());
        put(&self.lid.to_le_bytes());
        put(&[self.mtu as u8, self.responder_depth]);
        put(&[self.soft.is_some() as u8, self.memory.is_some() as u8]);
        let soft = self.soft.unwrap_or(SoftEndpoint {
            port: 0,
            window_bytes: 0,
            packet_overhead_bytes: 0,
            plain_socket: false,
        });
        put(&soft.port.to_le_bytes());
        put(&soft.window_bytes.to_le_bytes());
        put(&soft.packet_overhead_bytes.to_le_bytes());
        put(&[soft.plain_socket as u8, 0, 0, 0]);
        let memory = self.memory.unwrap_or(RemoteMemory { address: 0, length: 0, key: MemoryKey(0) });
        put(&memory.address.to_le_bytes());
        put(&memory.length.to_le_bytes());
        put(&memory.key.0.to_le_bytes());
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if it is something else.
    pub fn from_bytes(bytes: &[u8; ENDPOINT_BYTES]) -> Result<Self, Error> {
        let mut at = 0;
        let mut take = |count: usize| {
            at += count;
            &bytes[at - count..at]
        };
        let u16_of = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let u32_of = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let u64_of = |b: &[u8]| u32_of(b) as u64 | (u32_of(&b[4..]) as u64) << 32;
        if take(4) != MAGIC {
            return Err(Error::Endpoint("it does not start with the mark of this version, VSE1"));
        }
        let (queue_pair, psn) = (u32_of(take(4)), u32_of(take(4)));
        if queue_pair > 0xff_ffff || psn > 0xff_ffff {
            return Err(Error::Endpoint("queue pair number or PSN has more than 24 bits"));
        }
        let mut gid = [0; 16];
        gid.copy_from_slice(take(16));
        let lid = u16_of(take(2));
        let mtu = *Mtu::ALL.get(take(1)[0] as usize).ok_or(Error::Endpoint("the MTU is none of the five"))?;
        let responder_depth = take(1)[0];
        let flags = (take(1)[0], take(1)[0]);
        let port = u16_of(take(2));
        let window_bytes = u64_of(take(8));
        let packet_overhead_bytes = u32_of(take(4));
        let plain_socket = take(4)[0] != 0;
        let (address, length, key) = (u64_of(take(8)), u64_of(take(8)), MemoryKey(u32_of(take(4))));
        if flags.0 > 1 || flags.1 > 1 {
            return Err(Error::Endpoint("its flags are neither 0 nor 1"));
        }
        if flags.0 == 1 && port == 0 {
            return Err(Error::Endpoint("a soft endpoint has UDP port 0"));
        }
        if address.checked_add(length).is_none() {
            return Err(Error::Endpoint("its memory exceeds the 64-bit address space"));
        }
        Ok(Endpoint {
            queue_pair: QueuePairNumber(queue_pair),
            psn,
            gid: gid.into(),
            lid,
            mtu,
            responder_depth,
            soft: (flags.0 == 1).then_some(SoftEndpoint { port, window_bytes, packet_overhead_bytes, plain_socket }),
            memory: (flags.1 == 1).then_some(RemoteMemory { address, length, key }),
        })
    }

    /// Sends this record and receives the peer's, over a blocking stream.
    ///
    /// # Errors
    /// [`Error::Os`] when the stream fails, [`Error::Endpoint`] when what comes is no record.
    pub fn exchange(&self, stream: &mut (impl Read + Write)) -> Result<Endpoint, Error> {
        let fail = |call| move |source| Error::os("the byte stream to the peer", call, source);
        stream.write_all(&self.to_bytes()).map_err(fail("write"))?;
        stream.flush().map_err(fail("flush"))?;
        let mut theirs = [0; ENDPOINT_BYTES];
        stream.read_exact(&mut theirs).map_err(fail("read"))?;
        Endpoint::from_bytes(&theirs)
    }
}

/// Timers, retries and depths of a connection; the names are those of `struct ibv_qp_attr`.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Local ACK timeout: 4.096 us * 2^n, n of 1 to 31; 0 waits for ever.
    pub timeout: u8,
    /// Retries after timeouts and missing packets, 0 to 7. Seven retries on soft devices, as the specification says;
    /// rxe takes 7 for ever.
    pub retry_count: u8,
    /// Retries while the peer has no receive request, 0 to 6; 7 retries for ever.
    pub rnr_retry_count: u8,
    /// The delay that an empty receive queue asks the peer for, as a 5-bit code (12: 0.64 ms).
    pub rnr_timer: u8,
    /// READs and atomics outstanding at the peer at most; the peer's `responder_depth` bounds it.
    pub initiator_depth: u8,
    /// Path MTU at most; the smallest of this and both endpoints' is used. To lower it for both sides, lower it in the
    /// endpoint that is sent: this field is not seen by the peer.
    pub mtu: Mtu,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            timeout: 14,
            retry_count: 7,
            rnr_retry_count: 7,
            rnr_timer: 12,
            initiator_depth: 16,
            mtu: Mtu::Bytes4096,
        }
    }
}

impl ConnectOptions {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let check = |name, value: u8, max: u8, rule| {
            if value <= max { Ok(()) } else { Err(ControlError::Attribute { name, value: value as u64, rule }.into()) }
        };
        check("timeout", self.timeout, 31, "0 to 31; 0 waits for ever")?;
        check("retry_count", self.retry_count, 7, "0 to 7")?;
        check("rnr_retry_count", self.rnr_retry_count, 7, "0 to 7; 7 retries for ever")?;
        check("rnr_timer", self.rnr_timer, 31, "a code of 0 to 31")?;
        check("initiator_depth", self.initiator_depth, 128, "0 to 128")
    }
}

/// What queue pairs are made with.
#[derive(Debug, Clone, Copy)]
pub struct QueuePairOptions {
    /// Work requests in the send queue at most.
    pub send_depth: u32,
    /// Receive requests in the queue pair's own receive queue at most.
    pub receive_depth: u32,
    /// Bytes of one inline request at most.
    pub inline_bytes_max: u32,
    /// What the peer may do through this queue pair, beside each region's rights.
    pub access: Access,
}

impl Default for QueuePairOptions {
    fn default() -> Self {
        QueuePairOptions { send_depth: 128, receive_depth: 128, inline_bytes_max: 128, access: Access::ALL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let soft = (1u16.., any::<u64>(), any::<u32>(), any::<bool>()).prop_map(
            |(port, window_bytes, packet_overhead_bytes, plain_socket)| SoftEndpoint {
                port,
                window_bytes,
                packet_overhead_bytes,
                plain_socket,
            },
        );
        let memory = (0u64..1 << 63, 0u64..1 << 63, any::<u32>()).prop_map(|(address, length, key)| RemoteMemory {
            address,
            length,
            key: MemoryKey(key),
        });
        let numbers = (0u32..1 << 24, 0u32..1 << 24, any::<[u8; 16]>(), any::<u16>(), 0usize..5, any::<u8>());
        (numbers, proptest::option::of(soft), proptest::option::of(memory)).prop_map(|(n, soft, memory)| Endpoint {
            queue_pair: QueuePairNumber(n.0),
            psn: n.1,
            gid: n.2.into(),
            lid: n.3,
            mtu: Mtu::ALL[n.4],
            responder_depth: n.5,
            soft,
            memory,
        })
    }

    proptest! {
        #[test]
        fn records_come_back(endpoint in endpoint()) {
            prop_assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()).unwrap(), endpoint);
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), ENDPOINT_BYTES), real: bool) {
            if real {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let bytes: [u8; ENDPOINT_BYTES] = bytes.try_into().unwrap();
            if let Ok(endpoint) = Endpoint::from_bytes(&bytes) {
                prop_assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()).unwrap(), endpoint);
            }
        }
    }

    #[test]
    fn a_part_is_inside() {
        let memory = RemoteMemory { address: 100, length: 50, key: MemoryKey(7) };
        assert_eq!(memory.part(10, 40).unwrap().address, 110);
        assert_eq!(memory.part(10, 41), None);
        assert_eq!(memory.part(u64::MAX, 2), None);
    }
}
