//! Prints how many pods a second the scheduler's core places on 5,000 nodes, a line a case.
//!
//! `cargo run --release -p coracle-scheduler --example placements [NODES [PODS]]`

use coracle_scheduler::bench::Case;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let nodes = numbers.next().unwrap_or(5_000);
    let pods = numbers.next().unwrap_or(5_000);
    println!("{:24} {:>10} {:>10} {:>12}", "case", "placed", "refused", "placements/s");
    for case in Case::ALL {
        let done = case.run(nodes, pods);
        println!("{:24} {:>10} {:>10} {:>12.0}", case.name(), done.placed, done.refused, done.rate());
    }
}
