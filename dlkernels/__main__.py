"""`python -m dlkernels`: what is installed and what runs here."""

from dlkernels.info import info


def main():
    entries = info()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name.ljust(width)}  {value}")


if __name__ == "__main__":
    main()
