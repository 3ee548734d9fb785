//! Where text goes: changes to stdout, everything about them to stderr. A status line that replaces itself is drawn
//! on terminals only, and is taken away while other text is written.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::error::Error;

type WriteText = Box<dyn Fn(&[u8]) -> io::Result<()> + Send + Sync>;

/// Where a command's text goes.
pub struct Output {
    write: WriteText,
    status: Option<ProgressBar>,
}

impl Output {
    /// To stdout, without a status line.
    pub fn plain() -> Self {
        Output::to(|text| {
            let mut out = anstream::stdout().lock();
            out.write_all(text).and_then(|()| out.flush())
        })
    }

    /// To stdout, with a status line if stdout and stderr are terminals.
    pub fn with_status() -> Self {
        let is_terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let mut output = Output::plain();
        output.status = is_terminal.then(spinner);
        output
    }

    /// To whatever `write` does, which gets styled text.
    pub fn to(write: impl Fn(&[u8]) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Output { write: Box::new(write), status: None }
    }

    /// Writes at once. On stdout styles are stripped where it is no terminal, or by NO_COLOR.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        let write = || (self.write)(text.as_bytes());
        let written = match &self.status {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::OutputClosed,
            _ => Error::Io { context: "stdout".to_owned(), source: error },
        })
    }

    /// Writes a line to stderr.
    pub fn note(&self, text: &str) {
        match &self.status {
            Some(bar) => bar.suspend(|| anstream::eprintln!("{text}")),
            None => anstream::eprintln!("{text}"),
        }
    }

    /// Replaces the status line.
    pub fn status(&self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.status {
            bar.set_message(text());
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(bar) = &self.status {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.dim} {wide_msg:.dim}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Cells of a line on the terminal that stdout is; `None` when it is none.
pub fn terminal_width() -> Option<usize> {
    let (terminal_size::Width(width), _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(usize::from(width).max(20))
}
