// Command porcupine has the Porcupine checker judge histories of objects, so that our own checker's verdicts can be compared
// with another's. It reads one JSON document from standard input, `{"histories": [[operation, …], …]}`, and prints a word for
// each history: ok, illegal, or unknown when Porcupine did not come to an end in time.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/anishathalye/porcupine"
)

// Longest time for one history.
const patience = 20 * time.Second

// Absent is the state of an object that is not there; others are the value that is.
const absent = int64(-1)

// Operation is what one client asked for one object, and what it was told.
type Operation struct {
	Client int `json:"client"`
	// create, update (if the value is Expected), patch (whatever the value is), delete, get
	Kind     string `json:"kind"`
	Value    int64  `json:"value"`
	Expected int64  `json:"expected"`
	Called   int64  `json:"called"`
	// The end of time for one whose outcome is unknown.
	Returned int64 `json:"returned"`
	// done, exists, missing, conflict, unknown; a number for what a get found
	Outcome string `json:"outcome"`
}

// effect says what an operation does to an object that stands at `state`, and what it answers.
func effect(state int64, o Operation) (int64, string) {
	switch o.Kind {
	case "get":
		if state == absent {
			return state, "missing"
		}
		return state, strconv.FormatInt(state, 10)
	case "create":
		if state != absent {
			return state, "exists"
		}
		return o.Value, "done"
	}
	if state == absent {
		return state, "missing"
	}
	switch o.Kind {
	case "update":
		if state != o.Expected {
			return state, "conflict"
		}
		return o.Value, "done"
	case "patch":
		return o.Value, "done"
	case "delete":
		return absent, "done"
	}
	panic("no such operation: " + o.Kind)
}

var model = porcupine.Model{
	Init: func() any { return absent },
	Step: func(state, input, output any) (bool, any) {
		o := input.(Operation)
		next, answer := effect(state.(int64), o)
		return o.Outcome == "unknown" || o.Outcome == answer, next
	},
}

func run() error {
	var document struct {
		Histories [][]Operation `json:"histories"`
	}
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	for _, history := range document.Histories {
		operations := make([]porcupine.Operation, 0, len(history))
		for _, o := range history {
			operations = append(operations, porcupine.Operation{
				ClientId: o.Client, Input: o, Output: o.Outcome, Call: o.Called, Return: o.Returned,
			})
		}
		switch porcupine.CheckOperationsTimeout(model, operations, patience) {
		case porcupine.Ok:
			fmt.Println("ok")
		case porcupine.Illegal:
			fmt.Println("illegal")
		case porcupine.Unknown:
			fmt.Println("unknown")
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
