//! `walcast rebase`: an operator's word that the database now lives in another system. It is left in the data directory,
//! where the hub, running or not, finds it when it next connects to that very system, and removed once it has been acted on.

use super::{args::RebaseArgs, error::Error, output::Output};
use crate::source::REBASE;

pub fn run(args: &RebaseArgs) -> Result<(), Error> {
    if !args.data_dir.join("segments").is_dir() {
        return Err(Error::Failed(format!("{} holds no journal", args.data_dir.display())));
    }
    let file = args.data_dir.join(REBASE);
    let partial = file.with_extension("tmp");
    std::fs::write(&partial, format!("{}\n", args.system_identifier))
        .map_err(Error::io("writing the data directory"))?;
    std::fs::rename(&partial, &file).map_err(Error::io("writing the data directory"))?;
    Output::plain().print(&format!(
        "the hub will go on at system {} when it next connects to it; streams get a gap event\n",
        args.system_identifier
    ))
}
