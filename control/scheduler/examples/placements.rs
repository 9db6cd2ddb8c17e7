//! Prints how many pods a second the scheduler's core places on 5,000 nodes, a line a case.
//!
//! `cargo run --release -p coracle-scheduler --example placements [NODES [PODS]]`

use coracle_scheduler::bench::{Case, placements};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let nodes = numbers.next().unwrap_or(5_000);
    let pods = numbers.next().unwrap_or(5_000);
    println!("{:24} {:>10} {:>10} {:>12}", "case", "placed", "refused", "placements/s");
    for case in Case::ALL {
        let (existing, pods) = match case {
            // Four a node: no room is left.
            Case::Preemption => (4 * nodes, pods.min(nodes)),
            Case::AntiAffinity => (nodes / 5, pods.min(nodes)),
            _ => (nodes, pods),
        };
        let done = placements(case, nodes, existing, pods);
        println!("{:24} {:>10} {:>10} {:>12.0}", case.name(), done.placed, done.refused, done.rate());
    }
}
