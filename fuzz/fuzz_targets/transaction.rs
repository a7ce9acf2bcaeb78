#![no_main]

use fuzz_checks::Events;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| {
    fuzz_checks::transaction(data);
});

// libFuzzer knows nothing of lengths: a byte more in one event would make noise of all behind it.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut events = Events::read(&data[..size]);
    let count = events.list.len();
    let choice = usize::try_from(seed).unwrap_or_default();
    if count == 0 || choice % 16 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let (at, other) = (choice / 16 % count, choice / 4096 % count);
    match choice % 16 {
        1 => drop(events.list.remove(at)),
        2 => events.list.swap(at, other),
        3 => events.list.insert(at, events.list[other].clone()),
        4 => events.list[at].0.kind = events.list[other].0.kind,
        5 => events.list[at].0.kind = u8::try_from(choice >> 16 & 0xff).unwrap_or_default(),
        6 => events.list[at].0.flags ^= 0x80,
        7 => events.list[at].0.end = events.list[other].0.end,
        _ => {
            let event = &mut events.list[at].1;
            let length = event.len();
            event.resize(length + 64, 0);
            let mutated = fuzzer_mutate(event, length, length + 64);
            event.truncate(mutated);
        }
    }
    let written = events.write();
    // One that has become too long is cut.
    let size = written.len().min(max_size).min(data.len());
    data[..size].copy_from_slice(&written[..size]);
    size
});
