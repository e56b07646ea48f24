# The README's two commands. Both build the dev profile of the whole workspace, so that features never switch and nothing is built twice.
.PHONY: demo test prerequisites

demo: prerequisites
	cargo build --locked --workspace
	target/debug/lockstep demo

test: prerequisites
	cargo test --locked --workspace

prerequisites:
	@scripts/ensure-postgres.sh
