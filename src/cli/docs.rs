//! README's table of errors is held to [`Reason::ALL`].

use crate::reason::{Code, Reason};

const README: &str = include_str!("../../README.md");

fn code(code: Code) -> String {
    format!("{code:?}").chars().enumerate().fold(String::new(), |mut name, (index, c)| {
        if index > 0 && c.is_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
        name
    })
}

fn table() -> String {
    let mut table = "| reason | code | retry | meaning | what to do |\n|---|---|---|---|---|\n".to_owned();
    for reason in Reason::ALL {
        let retry = reason.retry_after().map_or_else(String::new, |seconds| format!("{seconds} s"));
        let (name, code) = (reason.as_str(), code(reason.code()));
        table += &format!("| `{name}` | {code} | {retry} | {} | {} |\n", reason.meaning(), reason.action());
    }
    table
}

#[test]
fn the_readme_has_the_table_of_errors() {
    let start = README.find("| reason |").expect("README has the table");
    let rows = README[start..].lines().take_while(|line| line.starts_with('|'));
    let found: String = rows.map(|line| format!("{line}\n")).collect();
    assert!(found == table(), "README's table of errors should be:\n\n{}", table());
}
