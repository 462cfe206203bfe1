from savimae.cli import main

main()
