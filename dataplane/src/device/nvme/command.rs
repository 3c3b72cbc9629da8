//! Commands of NVMe, as the kernel takes them for passthrough. Pure: no drive behind it.
//!
//! The layout is `struct nvme_passthru_cmd` of `include/uapi/linux/nvme_ioctl.h`, which `struct nvme_uring_cmd` shares but
//! for its last field; fields are in the order of the machine. Opcodes and dwords follow the NVM Express Base Specification 2.0
//! (Identify 5.17, Flush 7.1) and the NVM Command Set Specification 1.0 (Read 3.2.4, Write 3.2.6).

/// Bytes of `struct nvme_passthru_cmd` and of `struct nvme_uring_cmd`.
pub(in crate::device) const COMMAND_BYTES: usize = 72;
/// Blocks of one Read or Write: the field has 16 bits and counts from zero.
pub(super) const BLOCKS_MAX: u64 = 1 << 16;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const IDENTIFY: u8 = 0x06;

/// Which way the data of a command goes: the two lowest bits of every opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    None,
    ToDrive,
    FromDrive,
}

/// A command without its data's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) struct Command {
    opcode: u8,
    namespace: u32,
    dwords_10_to_12: [u32; 3],
}

impl Command {
    /// Reads `blocks` logical blocks, 1 to 65,536, from block `first` on.
    pub(super) fn read(namespace: u32, first: u64, blocks: u64) -> Self {
        Self::transfer_blocks(READ, namespace, first, blocks)
    }

    /// Writes as many.
    pub(super) fn write(namespace: u32, first: u64, blocks: u64) -> Self {
        Self::transfer_blocks(WRITE, namespace, first, blocks)
    }

    fn transfer_blocks(opcode: u8, namespace: u32, first: u64, blocks: u64) -> Self {
        debug_assert!((1..=BLOCKS_MAX).contains(&blocks), "{blocks} blocks do not fit into a command");
        Command { opcode, namespace, dwords_10_to_12: [first as u32, (first >> 32) as u32, (blocks - 1) as u32] }
    }

    /// Makes what was written to the namespace durable.
    pub(super) fn flush(namespace: u32) -> Self {
        Command { opcode: FLUSH, namespace, dwords_10_to_12: [0; 3] }
    }

    /// Asks for the Identify Namespace data structure: 4 KiB, an admin command.
    pub(super) fn identify(namespace: u32) -> Self {
        Command { opcode: IDENTIFY, namespace, dwords_10_to_12: [0; 3] }
    }

    /// Which way its data goes.
    pub(super) fn transfer(&self) -> Transfer {
        match self.opcode & 3 {
            1 => Transfer::ToDrive,
            2 => Transfer::FromDrive,
            _ => Transfer::None,
        }
    }

    /// The command for the kernel, its data in `length` bytes from `address` on.
    pub(in crate::device) fn encode(&self, address: u64, length: u32) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &[self.opcode]);
        put(4, &self.namespace.to_ne_bytes());
        put(24, &address.to_ne_bytes());
        put(36, &length.to_ne_bytes());
        for (dword, at) in self.dwords_10_to_12.iter().zip([40, 44, 48]) {
            put(at, &dword.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `struct nvme_passthru_cmd`, copied from the kernel's header field by field.
    #[repr(C)]
    #[derive(Debug, Default, PartialEq)]
    struct PassthruCmd {
        opcode: u8,
        flags: u8,
        rsvd1: u16,
        nsid: u32,
        cdw2: u32,
        cdw3: u32,
        metadata: u64,
        addr: u64,
        metadata_len: u32,
        data_len: u32,
        cdw10: u32,
        cdw11: u32,
        cdw12: u32,
        cdw13: u32,
        cdw14: u32,
        cdw15: u32,
        timeout_ms: u32,
        result: u32,
    }

    fn as_the_kernel_reads_it(bytes: [u8; COMMAND_BYTES]) -> PassthruCmd {
        // SAFETY: both have 72 bytes (or this does not compile), and any bytes are such a struct.
        unsafe { std::mem::transmute(bytes) }
    }

    proptest! {
        #[test]
        fn reads_and_writes_are_laid_out_as_the_kernel_and_the_specification_say(
            namespace: u32, first: u64, blocks in 1..=BLOCKS_MAX, addr: u64, data_len: u32, write: bool,
        ) {
            let command = if write { Command::write } else { Command::read }(namespace, first, blocks);
            let expected = PassthruCmd {
                opcode: if write { 1 } else { 2 },
                nsid: namespace,
                addr,
                data_len,
                cdw10: (first & 0xffff_ffff) as u32,
                cdw11: (first >> 32) as u32,
                cdw12: (blocks - 1) as u32,
                ..Default::default()
            };
            prop_assert_eq!(as_the_kernel_reads_it(command.encode(addr, data_len)), expected);
            prop_assert_eq!(command.transfer(), if write { Transfer::ToDrive } else { Transfer::FromDrive });
        }
    }

    #[test]
    fn flush_has_no_data_and_identify_brings_some() {
        let flush = as_the_kernel_reads_it(Command::flush(7).encode(0, 0));
        assert_eq!(flush, PassthruCmd { nsid: 7, ..Default::default() });
        assert_eq!(Command::flush(7).transfer(), Transfer::None);
        let identify = as_the_kernel_reads_it(Command::identify(7).encode(4096, 4096));
        assert_eq!(identify, PassthruCmd { opcode: 6, nsid: 7, addr: 4096, data_len: 4096, ..Default::default() });
        assert_eq!(Command::identify(7).transfer(), Transfer::FromDrive);
    }
}
