//! The five-minute tour of the README, line by line, as somebody types it, in a network of its own.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Output},
};

use heddle_tests::{binaries, netns, program, skip};

const README: &str = include_str!("../../README.md");

/// The commands of the first fenced block after a heading: continued lines joined, comments left out.
fn commands(text: &str, heading: &str) -> Vec<String> {
    let section = text.split_once(&format!("\n{heading}\n")).expect("the heading is there").1;
    let block = section.split_once("```sh\n").expect("a fenced block follows").1;
    let block = block.split_once("\n```").expect("the block ends").0.replace("\\\n", " ");
    let lines = block.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// A line that is not run here, and why.
fn aside(line: &str) -> Option<&'static str> {
    if line.starts_with("cargo build") || line.starts_with("export PATH=\"$PWD/target") {
        return Some("the programs are built already, and found first");
    }
    None
}

/// Runs the lines in one shell, whose network and processes end with it. What a person would type a second time, since the
/// one before has only just begun, is tried again; /tmp is a directory of the test's.
fn run(lines: &[String], dir: &Path) -> Output {
    let mut script = String::from(
        "ip link set lo up\n\
         try() {\n  echo \"== $1\"\n  for _ in $(seq 150); do\n    if eval \"$1\" >\"$HOME/said\" 2>&1; then cat \"$HOME/said\"; echo; return; fi\n    sleep 0.2\n  done\n  \
         echo \"never worked: $1\"; cat \"$HOME/said\"; exit 1\n}\n",
    );
    for line in lines {
        let line = line.replace("/tmp/", &format!("{}/", dir.display()));
        if line.ends_with('&') {
            // Its own words go where they do not mix with the others'.
            let command = line.trim_end_matches('&');
            writeln!(script, "echo '== {command}&'\n{command} >>\"$HOME/background\" 2>&1 &").unwrap();
        } else {
            writeln!(script, "try '{}'", line.replace('\'', "'\\''")).unwrap();
        }
    }
    // A refusal is no answer: curl ends with an error then.
    std::fs::write(dir.join(".curlrc"), "fail\nsilent\nshow-error\n").unwrap();
    let programs = binaries::path(binaries::PROXY).unwrap();
    let path = format!("{}:{}", programs.parent().unwrap().display(), std::env::var("PATH").unwrap());
    Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "bash", "-c", &script])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env("PATH", path)
        .env("HOME", dir)
        .output()
        .unwrap()
}

#[test]
fn the_five_minute_tour_of_the_readme_works_as_it_is_written() {
    if let Some(missing) = netns::missing() {
        skip!(missing);
    }
    if program::find("python3").is_none() {
        skip!("python3");
    }
    let (lines, left): (Vec<_>, Vec<_>) =
        commands(README, "## A five-minute tour").into_iter().partition(|line| aside(line).is_none());
    for line in &left {
        println!("not run: {line} ({})", aside(line).unwrap_or_default());
    }
    assert!(lines.len() >= 9 && left.len() == 2, "{lines:#?}");
    let dir = tempfile::tempdir().unwrap();
    let output = run(&lines, dir.path());
    let said = String::from_utf8_lossy(&output.stdout);
    let background = std::fs::read_to_string(dir.path().join("background")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{}\n{background}", String::from_utf8_lossy(&output.stderr));
    let after = |command: &str| {
        let (_, rest) = said.split_once(command).unwrap_or_else(|| panic!("{command}: {said}"));
        rest.split("\n== ").next().unwrap().to_owned()
    };
    assert!(after("http://reviews:9080/").contains("Directory listing"), "{said}");
    assert!(after(":15000/config").contains("shop/reviews"), "{said}");
    assert!(after(":15020/metrics").contains("http_server_request_duration_seconds_count"), "{said}");
    assert!(after(":15014/diagnostics").contains("[]"), "{said}");
}

#[test]
fn a_block_is_read_as_a_shell_would_read_it() {
    let text =
        "\n## One\n\ntext\n\n```sh\n# about\na \\\n  b &\n\nc   # not about\n```\n## Two\n```sh\nd\n```\n";
    assert_eq!(commands(text, "## One"), ["a    b &", "c   # not about"]);
    assert_eq!(commands(text, "## Two"), ["d"]);
}
