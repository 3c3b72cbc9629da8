//! Prints the devices of both providers, what they can do and their limits.

fn main() {
    let (devices, failure) = verbs_shim::devices_and_failure();
    if let Some(error) = failure {
        eprintln!("only soft devices, libibverbs fails: {error}");
    }
    for device in devices {
        let state = if device.active { "active" } else { "down" };
        let interface = device.interface.as_deref().unwrap_or("-");
        println!(
            "{:<16} {:?} {:?} on {interface}, {state}, MTU {}",
            device.name,
            device.provider,
            device.transport,
            device.mtu.bytes()
        );
        println!("    addresses: {:?}", device.gids);
        let can = device.capabilities;
        let words = [
            ("immediate", can.immediate),
            ("atomics", can.atomics),
            ("shared receive queues", can.shared_receive_queues),
            ("connect by endpoints", can.endpoints),
            ("rdma_cm", can.rdma_cm),
        ];
        let words: Vec<&str> = words.iter().filter(|(_, can)| *can).map(|(word, _)| *word).collect();
        println!("    can: {}", words.join(", "));
        println!(
            "    at most: {} queue pairs of {} requests of {} pieces, {} regions, {} READs and atomics outstanding",
            device.queue_pairs_max,
            device.queue_depth_max,
            device.pieces_max,
            device.regions_max,
            device.read_atomic_depth_max
        );
    }
}
