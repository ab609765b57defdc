//! Writes the OpenAPI document to the file that is named, or to standard output.

use std::process::ExitCode;

fn main() -> ExitCode {
    let json = match nftfleet_web_api_spec::openapi::document_json() {
        Ok(json) => json,
        Err(error) => {
            eprintln!("the document can't be written as JSON: {error}");
            return ExitCode::FAILURE;
        }
    };
    match std::env::args().nth(1) {
        None => print!("{json}"),
        Some(file) => {
            if let Err(error) = std::fs::write(&file, json) {
                eprintln!("{file} can't be written: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
