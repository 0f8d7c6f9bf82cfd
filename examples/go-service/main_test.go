package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func get(t *testing.T, target string) string {
	t.Helper()
	answer := httptest.NewRecorder()
	Service(zap.NewNop()).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, target, nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("%s: got %d", target, answer.Code)
	}
	return answer.Body.String()
}

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

func TestServiceAnswersInPlainWords(t *testing.T) {
	if got := get(t, "/?name=Ada"); !strings.HasPrefix(got, "Hello, Ada!") {
		t.Fatalf("got %q", got)
	}
}

func TestServiceCountsItsGreetings(t *testing.T) {
	get(t, "/")
	if got := get(t, "/vars"); !strings.Contains(got, `"greetings": `) {
		t.Fatal("the count is missing")
	}
}
