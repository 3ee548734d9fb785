//! Listing and verifying a journal without opening it.
