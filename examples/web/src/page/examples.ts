/** Drawings to begin with: lines of four of OpenMoji's that the network was not trained on (CC BY-SA 4.0). */

/** The page opens with pictures of the first drawing, of this seed and the next ones: chosen for their colours. */
export const OPENING = { seed: 12, count: 4 };

/** Names, and texts of encode() in strokes.ts. */
export const EXAMPLES = [
  {
    name: "pumpkin",
    drawing:
      "nAHMAcQHB0ABOgI-CDocbhY0HjgiNiIuKjAqJi4iMhwsFDAQMggwASoHKA8kFDAMQApOAkYBQAkwDR4RLhIwBjIBOAk0EzQZNCMyKSwt" +
      "KDEmOxw3FjUQNQo3CD8APwM_CT0NNxE1FzMbLx0nJSkjISkbKxVJF00JTQZJFAUBFREZDUEVUwtdAjcKLw4lEiEYQxE9Bz8CPw45Fjci" +
      "MSgrLkzgCPYDD1EBRwYhDCEOFxIVFhEaCRwAGg4KEgAUBQ4RFgMUCBQaDBwDHg8WGwwfAB0JIQ8dFRsbFR0RIQkjAy8ILRQrJCcyIT4Z" +
      "QhVSDVoyuATWCmY0eCp2GHoIcAdwFWwldDcxNDk0PS49JDkcOxQ9DDkENwM9CzUTORszITctMTEzOQj-B9QKX6kBvgEAXaoBJsYL_gaL" +
      "AmICBg4aEhYWEhIKHAgcAhwDHAcYCxgPEhUOFwgTBBsDGwUbJrQE_gaMAmIBBg0aERYVEhEKGwgbAhsDGwcXCxcPERUNFwcTAxsEGwYb",
  },
  {
    name: "crab",
    drawing:
      "JrYL1goPGBMUOyZHGj8GNwM3CyURJxsVFBcOMxQ_Bj0FNw1BGSkZHyUgoAXqCI4BiwE2KyQVIA0kBxwBKgYiASoEKgwsFCQYIBxKVjY4" +
      "CtgFpgsVEBEUCxgFGgjMBsQLFyQFGgEWCPQJxAsWJAgaABYGngeKBgAnACgGggmKBgAnACgK7gqgCxQQEBYEFAEMNuoE6gkxGjEGEwMZ" +
      "CSUfFRsRJR1VBSMCGwgTDBEKBxQHJAIwCh4UBgwCDgdOBioKEg4QGBAeDgoqPoADrAcZIRkpDyUJKQEpAiMMJxQlFiMiIyolLiEuDzIH" +
      "KgAgDBQQNxwvIB8kEyYDJAIkJI4BABYHFBEWHRIvDj0IJpwE5AUyGSolIi0YOSQ2DCAIJAIiAyQVPBUkHR4hGiUULRApBjEBGQc2oAvA" +
      "CTIZDg8MEQgnB1sEDQoJJhEyBxwCGBAMEAYcABwFJA0uEy4VJBUcGxQbDBsCGwEfCx0TCic83groAxwTKgkyBDwSJBYyKCIkHiYUJg4o" +
      "BioAKgkqES4ZKhsgNwcvCx0PExMHEwEbJI8BAiMFIRElISMtHzkbJuQL5AUxGSklIS0XOSM2CyAHJAEiBCQWPBYkHh4iGiYULhAqBjIB" +
      "Ggc",
  },
  {
    name: "shirt",
    drawing:
      "EN4KsgNSFgDwCNsGAAMBAOkIAgNKFwrIDfwGlQJVAN0C6gKsAVOIAgq4AvwGlgJVAN0C6QKsAVSIAjq0CeACfYgBAAZajgFScRwxFC0M" +
      "JwIjBxsNDUErPxtDE0cFRQhDEkcgPywLEgMcBCIMKhQsHDJQbFqNAQAFfYcBAv4H6AQC_gfGBQL-B6IG",
  },
  {
    name: "face",
    drawing:
      "ggGODYAIAT4JPg9AFT4ZOiE2JTQrMi8qMyg3IDkcPRY_Dj0KPQI9AT0JPw89FTkbNR8zJy8rJyklMyE3GzcVPQ8_CT8BOwJDCj8QPxQ3" +
      "GjciNyYzLC8wKzQnNh86Gz4VQA8-CT4BPgI-CkAOPhY6HDggNCgwKiwyJjQiNho6Fj4QQAo-Aj4IqgWABsQBcAAEwwFwCNYKgAbDAXAA" +
      "BMQBcArqBrIKKRclHx8lGSkKoAqoCRMkHSgfHCccEugFpgkuEkYOVAhUBFYDVAdEDzAPIqAJwgkBQAk4DTYTLhUkGx4dFCEGIQUdExsd" +
      "FSMTLQ01CTcBPw",
  },
];
