//! Measures the relay alone: `cargo run --release -p lab --example relay_bench [messages [bytes [window]]]`.

fn main() -> std::io::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let number = |index: usize, default: usize| numbers.get(index).copied().unwrap_or(default);
    let (count, size, window) = (number(0, 500_000), number(1, 256), number(2, 1_000));
    for (what, keys) in [("no key", 0), ("10,000 keys", 10_000)] {
        let rate = lab::bench::relay::relay_rate(count, size, window, keys)?;
        let per_second = rate.per_second();
        println!("{count} messages of {size} bytes, window {window}, {what}: {per_second:.0} messages/s");
    }
    let times = lab::bench::relay::relay_round_trips(5_000, size)?;
    if let (Some(half), Some(most)) = (times.get(times.len() / 2), times.get(times.len() * 99 / 100)) {
        println!("one message of {size} bytes at a time: p50 {half:.0?}, p99 {most:.0?}");
    }
    Ok(())
}
