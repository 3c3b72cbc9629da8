//! Devices, GIDs, registration, completion events, and the order of destruction.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;

use super::*;
use crate::Error;
use crate::device::{GidChoice, Provider, Transport};
use crate::ibv::abi::value;
use crate::ibv::device::list_by;
use crate::ibv::stub::{self, GIDS, Live, NAME};
use crate::verbs::Mtu;

fn gid(index: usize) -> Ipv6Addr {
    GIDS[index].0.parse().unwrap()
}

/// On a machine without RDMA: with the library, without it, with or without its providers.
#[test]
fn listing_never_fails_where_there_is_nothing() {
    if std::path::Path::new("/sys/class/infiniband").exists() {
        return;
    }
    let (listed, failure) = list();
    assert!(listed.is_empty() && failure.is_none(), "{failure:?}");
}

#[test]
fn an_unknown_device_is_a_typed_error() {
    match Context::open("nope", &OpenOptions::default()).unwrap_err() {
        Error::NoDevice { name, .. } => assert_eq!(name, "nope"),
        Error::NoLibrary { library, .. } => assert_eq!(library, "libibverbs.so.1"),
        other => panic!("{other}"),
    }
    let stub = Stub::new();
    let error = Context::open_by(stub.verbs(), &stub.sysfs(), "nope", &OpenOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "no RDMA device \"nope\"; there are: stub0");
}

#[test]
fn a_device_without_a_provider_says_which_package_to_install() {
    let stub = Stub::new();
    std::fs::create_dir_all(stub.sysfs().0.join("mlx9_0/ports")).unwrap();
    let error = Context::open_by(stub.verbs(), &stub.sysfs(), "mlx9_0", &OpenOptions::default()).unwrap_err();
    assert!(error.to_string().contains("ibverbs-providers"), "{error}");
}

#[test]
fn attributes_are_those_of_device_and_port() {
    let stub = Stub::new();
    let (listed, failure) = list_by(stub.verbs(), &stub.sysfs());
    assert!(failure.is_none(), "{failure:?}");
    let [device] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((device.name.as_str(), device.provider, device.transport), (NAME, Provider::Ibv, Transport::RoceV2));
    assert_eq!(device.interface.as_deref(), Some("eth7"));
    assert_eq!(device.gids, [gid(1), gid(2), gid(3)]);
    assert!(device.active && device.capabilities.immediate && device.capabilities.atomics);
    assert!(device.capabilities.endpoints && device.capabilities.shared_receive_queues);
    assert_eq!((device.mtu, device.pieces_max, device.read_atomic_depth_max), (Mtu::Bytes2048, 4, 12));
    assert_eq!((device.queue_pairs_max, device.queue_depth_max), (1000, 8192));
    assert_eq!((device.completions_max, device.regions_max), (65536, 5000));
    let context = stub.open(&OpenOptions::default()).unwrap();
    assert_eq!(context.attributes().gids, device.gids);
    assert_eq!(context.message_bytes_max(), 1 << 23);
}

/// Two entries of the stub's list are the same device; the second cannot be opened.
#[test]
fn a_device_that_cannot_be_opened_is_told_of_beside_those_that_can() {
    let stub = Stub::new();
    stub.record().devices = 2;
    stub.record().refuse_open = Some((1, libc::EACCES));
    let (listed, failure) = list_by(stub.verbs(), &stub.sysfs());
    assert_eq!(listed.len(), 1);
    let text = failure.unwrap().to_string();
    assert!(text.starts_with("stub0: ibv_open_device failed: Permission denied"), "{text}");
    assert!(text.ends_with("this user may not use /dev/infiniband/uverbs*"), "{text}");
    stub.record().refuse_open = Some((0, libc::EACCES));
    assert_eq!(list_by(stub.verbs(), &stub.sysfs()).0.len(), 1, "the first cannot be opened, the second can");
    let (listed, failure) = list_by(stub.verbs(), &stub.sysfs());
    assert!(listed.len() == 2 && failure.is_none(), "{failure:?}");
}

#[test]
fn a_list_that_cannot_be_had_is_a_failure_unless_there_is_nothing_to_list() {
    let stub = Stub::new();
    for (error, fails) in [(libc::EACCES, true), (libc::ENOMEM, true), (libc::ENOSYS, false), (libc::ENODEV, false)] {
        stub.record().refuse_list = Some(error);
        let (listed, failure) = list_by(stub.verbs(), &stub.sysfs());
        assert!(listed.is_empty());
        assert_eq!(failure.is_some(), fails, "{error}");
        if let Some(failure) = failure {
            assert!(failure.to_string().starts_with("libibverbs: ibv_get_device_list failed"), "{failure}");
        }
    }
}

#[test]
fn a_port_that_is_down_opens_and_is_not_active() {
    let stub = Stub::new();
    stub.record().port_state = 1;
    assert!(!stub.open(&OpenOptions::default()).unwrap().attributes().active);
}

#[test]
fn iwarp_has_neither_immediate_data_nor_atomics_nor_endpoints() {
    let stub = Stub::with_transport(value::TRANSPORT_IWARP);
    let context = stub.open(&OpenOptions::default()).unwrap();
    let attributes = context.attributes();
    assert_eq!(attributes.transport, Transport::Iwarp);
    let capabilities = attributes.capabilities;
    assert!(!capabilities.immediate && !capabilities.atomics && !capabilities.endpoints);
    assert!(attributes.gids.is_empty());
}

#[test]
fn a_device_of_another_kind_is_not_listed() {
    let stub = Stub::with_transport(4);
    let (listed, failure) = list_by(stub.verbs(), &stub.sysfs());
    assert!(listed.is_empty() && failure.is_none(), "{failure:?}");
    assert!(stub.open(&OpenOptions::default()).unwrap_err().to_string().contains("neither InfiniBand"));
}

#[test]
fn a_device_without_atomics_says_so() {
    let stub = Stub::new();
    stub.record().atomic_cap = value::ATOMIC_NONE;
    assert!(!stub.open(&OpenOptions::default()).unwrap().attributes().capabilities.atomics);
}

#[test]
fn the_gid_is_the_one_chosen_and_never_of_version_1() {
    let stub = Stub::new();
    let open = |gid| stub.open(&OpenOptions { gid, ..Default::default() });
    let chosen = |choice| open(choice).map(|context| (context.gid_index, context.gid));
    assert_eq!(chosen(GidChoice::First).unwrap(), (2, gid(2)), "the first that is not link-local");
    assert_eq!(chosen(GidChoice::Index(1)).unwrap(), (1, gid(1)));
    assert_eq!(chosen(GidChoice::Address("192.0.2.7".parse().unwrap())).unwrap(), (2, gid(2)));
    assert_eq!(chosen(GidChoice::Address(IpAddr::V6(gid(3)))).unwrap(), (3, gid(3)));
    let text = chosen(GidChoice::Index(0)).unwrap_err().to_string();
    assert!(text.contains("port 1 has no RoCEv2 GID at index 0"), "{text}");
    assert!(text.contains("(1: fe80::5054:ff:fe12:3456, 2: 192.0.2.7, 3: 2001:db8::7)"), "{text}");
    let text = chosen(GidChoice::Address("192.0.2.8".parse().unwrap())).unwrap_err().to_string();
    assert!(text.contains("for address 192.0.2.8"), "{text}");
}

#[test]
fn a_link_local_gid_is_better_than_none() {
    let stub = Stub::new();
    for index in [2, 3] {
        stub.describe(&format!("ports/1/gid_attrs/types/{index}"), "IB/RoCE v1");
    }
    assert_eq!(stub.open(&OpenOptions::default()).unwrap().gid, gid(1));
}

#[test]
fn a_device_without_a_gid_says_what_to_do() {
    let stub = Stub::new();
    stub.forget_gids();
    stub.describe("device/net/eth3/mtu", "1500");
    let text = stub.open(&OpenOptions::default()).unwrap_err().to_string();
    assert_eq!(
        text,
        "stub0: port 1 has no RoCEv2 GID: give interface eth3 an address (ip address add ADDRESS/PREFIX dev eth3) and set \
         it up (ip link set eth3 up)"
    );
}

#[test]
fn infiniband_uses_its_lid_and_gid_0() {
    let stub = Stub::new();
    stub.record().link_layer = value::LINK_LAYER_INFINIBAND;
    let context = stub.open(&OpenOptions::default()).unwrap();
    assert_eq!(context.attributes().transport, Transport::InfiniBand);
    assert_eq!((context.lid, context.gid), (33, gid(0)));
}

#[test]
fn a_port_that_is_not_there_is_a_typed_error() {
    let stub = Stub::new();
    let error = stub.open(&OpenOptions { port: 2, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("attribute port is 2"), "{error}");
}

#[test]
fn registration_checks_rights_and_range() {
    let bench = Bench::new();
    let mut memory = vec![0u8; 64];
    // SAFETY: the vector outlives the region, and the stub touches nothing.
    let register = |bytes, access| unsafe { bench.domain.register(memory.as_mut_ptr(), bytes, access) };
    let mut register = register;
    let region = register(64, Access::ALL).unwrap();
    assert_ne!(region.local_key(), region.remote_key());
    for access in [Access::REMOTE_WRITE, Access::REMOTE_ATOMIC] {
        let text = register(64, access).err().unwrap().to_string();
        assert!(text.contains("need local write"), "{text}");
    }
    assert!(register(usize::MAX, Access::NONE).err().unwrap().to_string().contains("64-bit address space"));
    let text = register(0, Access::NONE).err().unwrap().to_string();
    assert!(text.contains("stub0: ibv_reg_mr failed: Invalid argument"), "{text}");
}

/// The stub asserts that children go before parents.
#[test]
fn objects_may_be_dropped_in_any_order() {
    let stub = Stub::new();
    let context = stub.open(&OpenOptions::default()).unwrap();
    let domain = context.create_domain().unwrap();
    let queue = context.create_completion_queue(8).unwrap();
    drop(context);
    let shared = domain.create_shared_receive_queue(8).unwrap();
    let pair = domain.create_queue_pair(&queue, &queue, Some(&shared), &Default::default()).unwrap();
    let mut memory = [0u8; 8];
    // SAFETY: the array outlives the region, and the stub touches nothing.
    let region = unsafe { domain.register(memory.as_mut_ptr(), 8, Access::NONE) }.unwrap();
    drop(domain);
    drop((queue, shared));
    let all = Live {
        contexts: 1,
        domains: 1,
        regions: 1,
        channels: 1,
        completion_queues: 1,
        shared_receive_queues: 1,
        queue_pairs: 1,
    };
    assert_eq!(stub.record().live, all);
    drop(pair);
    assert_eq!(
        stub.record().live,
        Live { queue_pairs: 0, shared_receive_queues: 0, completion_queues: 0, channels: 0, ..all }
    );
    drop(region);
    assert_eq!(stub.record().live, Live::default());
}

#[test]
fn queues_of_another_context_are_refused() {
    let bench = Bench::new();
    let other = bench.stub.open(&OpenOptions::default()).unwrap();
    let queue = other.create_completion_queue(8).unwrap();
    let made = bench.domain.create_queue_pair(&queue, &bench.receive, None, &Default::default());
    assert!(matches!(made, Err(Error::Mismatch { .. })));
}

#[test]
fn events_wake_the_descriptor_and_are_acknowledged() {
    let bench = Bench::new();
    let readable = || {
        let mut poll = libc::pollfd { fd: bench.send.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor structure, ours.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    };
    assert!(bench.send.capacity() >= 64);
    bench.send.arm().unwrap();
    assert_eq!(bench.stub.record().armed, 1);
    bench.send.clear_events();
    assert!(!readable());
    stub::signal(&bench.send);
    stub::signal(&bench.send);
    assert!(readable());
    bench.send.clear_events();
    assert!(!readable());
    assert_eq!(bench.stub.record().acknowledged, 2);
}
