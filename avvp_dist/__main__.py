"""`python -m avvp_dist STAGE`, which `deepspeed --module avvp_dist STAGE` starts on each rank."""

from avvp_dist.cli import main

if __name__ == "__main__":
    main()
