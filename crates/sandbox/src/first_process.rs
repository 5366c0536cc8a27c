//! The first process of a call's PID namespace: what Linux spares from signals, so that the code is not it.
//!
//! Rule: it closes its descriptors and waits for its end; it is told nothing and does nothing. It shares the memory of the
//! zygote that makes it, so that it costs neither pages nor time. So what it runs may touch no memory at all, and is given
//! here as the few instructions that it is: no compiler promises that.

/// `close_range(0, ~0, 0)`, then `pause()` for ever.
#[cfg(target_arch = "x86_64")]
const PROGRAM: &[u8] = &[
    0xB8, 0xB4, 0x01, 0x00, 0x00, // mov eax, 436
    0x31, 0xFF, // xor edi, edi
    0xBE, 0xFF, 0xFF, 0xFF, 0xFF, // mov esi, 0xFFFFFFFF
    0x31, 0xD2, // xor edx, edx
    0x0F, 0x05, // syscall
    0xB8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34
    0x0F, 0x05, // syscall
    0xEB, 0xF7, // jmp to the second mov
];

/// `close_range(0, ~0, 0)`, then `ppoll(NULL, 0, NULL, NULL)` for ever.
#[cfg(target_arch = "aarch64")]
const PROGRAM: &[u8] = &[
    0x88, 0x36, 0x80, 0xD2, // mov x8, #436
    0x00, 0x00, 0x80, 0xD2, // mov x0, #0
    0x01, 0x00, 0x80, 0x12, // mov w1, #-1
    0x02, 0x00, 0x80, 0xD2, // mov x2, #0
    0x01, 0x00, 0x00, 0xD4, // svc #0
    0x28, 0x09, 0x80, 0xD2, // mov x8, #73
    0x00, 0x00, 0x80, 0xD2, // mov x0, #0
    0x01, 0x00, 0x80, 0xD2, // mov x1, #0
    0x02, 0x00, 0x80, 0xD2, // mov x2, #0
    0x03, 0x00, 0x80, 0xD2, // mov x3, #0
    0x01, 0x00, 0x00, 0xD4, // svc #0
    0xFA, 0xFF, 0xFF, 0x17, // b to the second mov x8
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const PROGRAM: &[u8] = &[];

/// Its instructions, which may lie anywhere; none on an architecture for which there are none.
pub fn first_process_program() -> &'static [u8] {
    PROGRAM
}
