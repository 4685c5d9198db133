//! The program: reads the command line and runs the server.

use clap::Parser;
use musubi_webhook::options::Options;

fn main() -> anyhow::Result<()> {
    musubi_webhook::run(&Options::parse())
}
