//! Keys whose rows are in the table alone.

use super::super::overflow::Overflow;

#[test]
fn a_key_is_held_from_the_row_left_to_the_scan_that_leaves_none() {
    let mut overflow = Overflow::default();
    assert!(overflow.is_empty() && !overflow.holds(70) && overflow.memory() == 0);
    overflow.leave(70);
    assert!(!overflow.is_empty() && overflow.holds(70) && overflow.is_left(70));
    overflow.scan_began();
    assert!(overflow.holds(70) && !overflow.is_left(70));
    assert_eq!(overflow.memory(), 2 << 20);
    overflow.leave(71);
    assert_eq!(overflow.memory(), 4 << 20);
    overflow.scan_ended();
    assert!(!overflow.holds(70) && overflow.holds(71) && !overflow.is_left(71));
    overflow.scan_began();
    overflow.scan_ended();
    assert!(overflow.is_empty() && !overflow.holds(71));
}

#[test]
fn keys_differ_by_their_low_bits() {
    let keys = [0, 1, 2, 63, 64, 65, 127, 128, 4096, (1 << 24) - 1];
    for left in keys {
        let mut overflow = Overflow::default();
        overflow.leave(left);
        overflow.leave(left);
        for key in keys {
            assert_eq!(overflow.holds(key), key == left, "{left} and {key}");
            assert_eq!(overflow.holds(key + (1 << 24)), key == left);
        }
    }
    let mut overflow = Overflow::default();
    for key in keys {
        overflow.leave(key);
    }
    assert!(keys.iter().all(|key| overflow.holds(*key)));
}
