//! `heddle inject -f app.yaml`.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;

use super::{Settings, offline, probes::random_token, settings};

/// Bytes of manifests that are read.
const LONGEST: u64 = 64 << 20;

/// What it is told.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// Manifests, YAML or JSON; - is stdin. Repeatable.
    #[arg(
        short,
        long = "filename",
        env = "HEDDLE_FILENAME",
        value_name = "FILE",
        required = true,
        value_delimiter = ','
    )]
    filename: Vec<PathBuf>,
    /// The sidecar's image.
    #[arg(long, env = "HEDDLE_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// The namespace that the control plane runs in.
    #[arg(long, env = "HEDDLE_SYSTEM_NAMESPACE", value_name = "NS", default_value = heddle_api::SYSTEM_NAMESPACE)]
    system_namespace: String,
}

impl InjectArgs {
    /// Prints all documents, or, where one pod is refused, none.
    ///
    /// # Errors
    /// When a file cannot be read, or a pod is refused.
    pub fn perform(&self) -> anyhow::Result<()> {
        let mut common = Settings {
            control_plane: settings::control_plane(&self.system_namespace),
            ..Settings::default()
        };
        if let Some(image) = &self.image {
            common.image.clone_from(image);
        }
        let mut texts = Vec::new();
        let mut refusals = Vec::new();
        for path in &self.filename {
            let text = read(path).with_context(|| path.display().to_string())?;
            let injected = offline::manifests(&text, &common, random_token)
                .with_context(|| path.display().to_string())?;
            for warning in &injected.warnings {
                say(&format!("heddle: {}: {warning}", path.display()));
            }
            refusals.extend(injected.refusals.iter().map(|refusal| format!("{}: {refusal}", path.display())));
            texts.push(injected.yaml()?);
        }
        anyhow::ensure!(refusals.is_empty(), "{}", refusals.join("\n"));
        match std::io::stdout().write_all(texts.join("---\n").as_bytes()) {
            // Whoever reads has read enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("writing to stdout"),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(LONGEST).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    }
    anyhow::ensure!((text.len() as u64) < LONGEST, "longer than {LONGEST} bytes");
    Ok(text)
}

fn say(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _written = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: InjectArgs,
    }

    #[test]
    fn a_refused_pod_is_named_with_its_file_and_what_is_no_yaml_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let problem = |text: &str| {
            let path = dir.path().join("app.yaml");
            std::fs::write(&path, text).unwrap();
            let line = Line::parse_from(["inject", "-f", path.to_str().unwrap()]);
            format!("{:#}", line.args.perform().unwrap_err())
        };
        let pod = "kind: Pod\nmetadata: {name: net}\nspec: {hostNetwork: true, containers: [{name: a}]}\n";
        let refused = problem(pod);
        assert!(refused.contains("app.yaml: Pod net: it uses the node's network"), "{refused}");
        let broken = problem("kind: Pod\n  spec: [\n");
        assert!(broken.contains("app.yaml") && broken.contains("line 2"), "{broken}");
    }
}
