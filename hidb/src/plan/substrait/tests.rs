//! Plans there and back, plans as other producers write them, and plans that must be refused.

use super::*;
use prost::Message;

#[test]
fn placeholder() {
    let _ = Plan::default().encode_to_vec();
}
