// Command maitred is PID 1 of a VM, and the poweroff command of those in it.
package main

import (
	"os"

	"github.com/auberge-vm/auberge/guest/maitred"
)

func main() { os.Exit(maitred.Main(os.Args)) }
