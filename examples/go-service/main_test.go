package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGreetingNamesTheCaller(t *testing.T) {
	if got := Greeting(" Ada "); got != "Hello, Ada!" {
		t.Fatalf("got %q", got)
	}
}

func TestGreetingWithoutANameGreetsTheWorld(t *testing.T) {
	if got := Greeting(""); got != "Hello, world!" {
		t.Fatalf("got %q", got)
	}
}

func TestHandlerAnswersInPlainWords(t *testing.T) {
	answer := httptest.NewRecorder()
	handler(answer, httptest.NewRequest("GET", "/?name=Ada", nil))
	if !strings.HasPrefix(answer.Body.String(), "Hello, Ada!") {
		t.Fatalf("got %q", answer.Body.String())
	}
}
